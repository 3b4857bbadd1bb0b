"""Frames of videos."""

from __future__ import annotations

import threading
import wave
from pathlib import Path

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners import video_frames
from tests.support.videos import write_video


def greys(path: Path, count: int) -> list[int]:
    frames = video_frames.read(path, count, "video", threading.Event())
    return [round(frame.convert("L").resize((1, 1)).tobytes()[0] / 2) for frame in frames]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred frames: the grey of each is twice its number."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [(2 * number,) * 3 for number in range(100)])
    return path


@pytest.mark.parametrize(("count", "middle"), [(1, [50]), (2, [25, 75]), (5, [10, 30, 50, 70, 90])])
def test_the_frames_are_evenly_spaced(film: Path, count: int, middle: list[int]) -> None:
    assert greys(film, count) == pytest.approx(middle, abs=2)


def test_a_short_video_gives_all_its_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", [(2 * number,) * 3 for number in (10, 50, 90)])
    assert greys(tmp_path / "short.mp4", 8) == pytest.approx([10, 50, 90], abs=3)


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    write_video(tmp_path / "large.mp4", [(0, 0, 0)], (2048, 512))
    (frame,) = video_frames.read(tmp_path / "large.mp4", 1, "video", threading.Event())
    assert frame.size == (1024, 256)


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_times_may_begin_later_or_be_missing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"film.{suffix}"
    write_video(path, [(2 * number,) * 3 for number in range(20)], begin=40_000)
    assert greys(path, 2) == pytest.approx([5, 15], abs=3)
    monkeypatch.setattr(video_frames, "LONGEST", 0.1)
    with pytest.raises(PredictionFailed, match="the video is longer"):
        greys(path, 2)


def test_files_without_video_and_long_videos_are_refused(
    tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no video")
    (tmp_path / "long.txt").write_text("no video " * 100)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0" * 8000)
    nothing = "this file has no video stream"
    for name, reason in (("text", "cannot be decoded"), ("long.txt", nothing), ("sound.wav", nothing)):
        with pytest.raises(PredictionFailed, match=rf"input\.video: .*{reason}"):
            greys(tmp_path / name, 4)
    assert len(greys(film, 4)) == 4
    monkeypatch.setattr(video_frames, "LONGEST", 5.0)
    with pytest.raises(PredictionFailed, match=r"input\.video: the video is longer than 5 s"):
        greys(film, 4)
