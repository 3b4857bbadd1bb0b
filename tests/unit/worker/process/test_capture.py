"""The output of a prediction becomes its log; other output goes to the log file."""

from __future__ import annotations

import asyncio
import io
import sys
import threading

import pytest

from appliance.worker.handle import tail
from appliance.worker.process import capture
from appliance.worker.process.capture import CapturingStream, PredictionLog


class LogFile(io.StringIO):
    """Stands for the text stream over descriptor 1."""

    buffer = io.BytesIO()


async def pieces(*writes: str) -> str:
    """The log of a prediction that writes these, one right after the other."""
    got: list[str] = []
    log = PredictionLog(got.append, io.StringIO())
    for text in writes:
        log.write(text)
    log.close()
    return "".join(got)


async def test_tasks_keep_their_output_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    written = LogFile()
    monkeypatch.setattr(sys, "stdout", CapturingStream(written))
    got: dict[str, list[str]] = {"a": [], "b": []}

    async def predict(name: str) -> None:
        log = PredictionLog(got[name].append, written)
        capture.assign(log)
        print("begins", name)
        await asyncio.sleep(0)
        await asyncio.to_thread(print, "thread of", name)
        log.close()
        print("late", name)

    await asyncio.gather(asyncio.create_task(predict("a")), asyncio.create_task(predict("b")))
    print("outside")
    for name in "ab":
        assert "".join(got[name]) == f"begins {name}\nthread of {name}\n"
    assert sorted(written.getvalue().splitlines()) == ["late a", "late b", "outside"]


@pytest.mark.parametrize(
    ("writes", "text"),
    [
        (("a\n", "b"), "a\nb"),
        (("\r 50%", "\r100%", "\n", "next\n"), " 50%\n100%\nnext\n"),
        (("working\n", "\r1/2", "\r2/2\n"), "working\n1/2\n2/2\n"),
        (("a\r\nb\r\n",), "a\nb\n"),
        (("a\r", "\nb"), "a\nb"),
        (("a\r", "b"), "a\nb"),
        (("1\r2\r3",), "3"),
        (("one\n1\r2", "3\n\n4"), "one\n23\n\n4"),
        (("\r1", "\r2", "\r3", "\r", "\r"), "1\n3"),
        (("1", "\r", "2", "\r", "3", "\r", "\n"), "1\n2\n3\n"),
        (("\r50", "%", "\r60", "%", "\n"), "50\n60%\n"),
        (("a\r\n" * 3, "b\r\r\n"), "a\na\na\nb\n"),
        (("a\r",), "a"),
        (("", "\udcff"), "?"),
    ],
)
async def test_a_line_that_is_redrawn_keeps_its_last_state(writes: tuple[str, ...], text: str) -> None:
    assert await pieces(*writes) == text


async def test_a_progress_bar_is_a_few_lines_however_often_it_is_redrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "STATE_SECONDS", 3600.0)
    bars = [f"\r{done:5}/10000" for done in range(10_001)]
    assert await pieces("begins\n", *bars, "\nends\n") == "begins\n    0/10000\n10000/10000\nends\n"


async def test_a_state_is_sent_if_no_other_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "STATE_SECONDS", 0.05)
    monkeypatch.setattr(capture, "STATE_SHARE", 0.0)
    got: list[str] = []
    log = PredictionLog(got.append, io.StringIO())
    log.write("\r1/3")
    log.write("\r2/3")
    async with asyncio.timeout(60):  # for hangs
        while "".join(got) != "1/3\n2/3":
            await asyncio.sleep(0.01)
    log.write("\r3/3\n")
    assert "".join(got) == "1/3\n2/3\n3/3\n"


async def test_text_after_the_close_goes_to_the_log_file() -> None:
    got: list[str] = []
    late = io.StringIO()
    log = PredictionLog(got.append, late)
    await asyncio.to_thread(log.write, "in time ")
    thread = threading.Thread(target=log.write, args=("too late",))
    thread.start()
    thread.join()
    log.close()
    await asyncio.sleep(0)
    log.write(", after the end")
    assert got == ["in time "]
    assert late.getvalue() == "too late, after the end"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a\nb\nc\n", "b\nc"),
        ("the error\n" + "".join(f"\r{done}%" for done in range(101)) + "\n", "the error\n100%"),
        ("the error\r\n99%\r100%\r", "the error\n100%"),
        ("one\u2028line\nb", "one\u2028line\nb"),
    ],
)
def test_the_end_of_a_log_is_shown_as_on_a_terminal(text: str, shown: str) -> None:
    assert tail(text, 2) == shown


async def test_a_long_log_keeps_its_beginning_and_its_last_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "KEPT", 100)
    monkeypatch.setattr(capture, "KEPT_END", 50)
    got: list[str] = []
    log = PredictionLog(got.append, io.StringIO())
    for number in range(1000):
        log.write(f"line {number:04}\n")
    assert len(got) == 11, "ten lines are passed on as they come, then the notice"
    log.close()
    lines = "".join(got).split("\n")
    assert lines[:10] == [f"line {number:04}" for number in range(10)]
    assert lines[10] == "[the log has over 100 characters: its end follows when the prediction ends]"
    assert lines[11] == "[985 lines of the log are left out here]"
    assert lines[12:] == [*(f"line {number:04}" for number in range(995, 1000)), ""]


async def test_a_long_log_in_one_piece_is_cut_between_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "KEPT", 25)
    monkeypatch.setattr(capture, "KEPT_END", 25)
    got: list[str] = []
    log = PredictionLog(got.append, io.StringIO())
    log.write("".join(f"line {number:04}\n" for number in range(100)))
    log.close()
    lines = "".join(got).split("\n")
    assert lines[:2] + lines[4:] == ["line 0000", "line 0001", "line 0098", "line 0099", ""]
    assert lines[3] == "[96 lines of the log are left out here]"
