"""Any text, in any encoding, is read as it was written or refused in one clear message."""

from __future__ import annotations

import base64
import json
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.cli.client import parse_input
from appliance.domain.errors import ApplianceError, PredictionFailed
from appliance.protocols import media
from appliance.runners.embeddings import runner
from appliance.runners.lora_training import examples

_ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis")
_READ: Final = ("utf-8", "utf-8-sig")
#: Ends of lines that only some programs know, marks of byte order, NUL, and halves of pairs.
_ODD: Final = "\u2028\u2029\x85\x0b\x0c\x1c\r\n\ufeff\x00\ud800\udfff\U0001f600"
_words = st.text(max_size=30) | st.text(st.sampled_from(_ODD + "ab"), max_size=12)
_settings = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def _is_whole(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which no encoding can write."""
    return not any("\ud800" <= mark <= "\udfff" for mark in text)


@_settings
@given(
    texts=st.lists(_words, min_size=1, max_size=4),
    encoding=st.sampled_from(_ENCODINGS),
    escaped=st.booleans(),
)
@example(texts=["x" * 200_000], encoding="utf-8", escaped=False)
def test_training_data(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], encoding: str, escaped: bool
) -> None:
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=escaped) for text in texts)
    file = tmp_path_factory.getbasetemp() / "train.jsonl"
    file.write_bytes(lines.encode(encoding, errors="replace"))
    try:
        read = [one.text for one in examples.read(file, "")]
    except PredictionFailed as refused:
        assert encoding not in _READ or not all(map(_is_whole, texts)) or "" in texts
        assert str(refused).startswith("train_data: ")
        assert "\n" not in str(refused)
        return
    if encoding in _READ and all(map(_is_whole, texts)):
        assert read == texts


@_settings
@given(content=st.binary(max_size=200))
@example(content=b"[" * 100_000)
@example(content=b'{"text": ' + b"9" * 5_000 + b"}")
@example(content=b'{"text": NaN}')
def test_training_data_that_is_anything(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "anything.jsonl"
    file.write_bytes(content)
    with pytest.raises(PredictionFailed, match=r"^train_data: [^\n]*$"):
        examples.read(file, "")


@_settings
@given(text=_words, encoding=st.sampled_from(_ENCODINGS))
def test_files_of_the_command_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "text"
    file.write_bytes(text.encode(encoding, errors="replace"))
    try:
        _, read = parse_input(f"prompt=@{file}", {"prompt": {"type": "string"}})
    except ApplianceError as refused:
        assert encoding not in _READ
        assert str(refused) == f"-i prompt=@{file}: the file must be UTF-8 text"
        return
    if encoding in _READ and _is_whole(text):
        assert read == (text if encoding == "utf-8-sig" else text.removeprefix("\ufeff"))


@_settings
@given(given_texts=_words | st.lists(_words, max_size=4) | st.lists(_words, max_size=4).map(json.dumps))
@example(given_texts="[" * 100_000)
@example(given_texts="9" * 5_000)
def test_texts_to_embed(given_texts: Any) -> None:
    try:
        read = runner.parse(given_texts)
    except PredictionFailed as refused:
        assert "texts must be a JSON list of strings" in str(refused)
        return
    assert read
    assert all(isinstance(text, str) for text in read)
    if isinstance(given_texts, list):
        assert read == given_texts
    elif read != [given_texts]:
        assert json.loads(given_texts) == read


@_settings
@given(content=st.binary(max_size=100), width=st.integers(1, 20), padded=st.booleans(), safe=st.booleans())
def test_data_urls(content: bytes, width: int, padded: bool, safe: bool) -> None:
    written = (base64.urlsafe_b64encode if safe else base64.b64encode)(content).decode()
    written = written if padded else written.rstrip("=")
    lines = "\r\n".join(written[at : at + width] for at in range(0, len(written), width))
    for url in (lines, quote(lines)):
        assert media.from_data(f"data:text/plain;base64,{url}") == ("text/plain", content)
    assert media.from_data(f"data:,{quote(content)}") == ("", content)


@_settings
@given(url=st.text(max_size=60).map("data:".__add__) | st.text(max_size=40).map("data:;base64,".__add__))
def test_data_urls_that_are_anything(url: str) -> None:
    try:
        kind, content = media.from_data(url)
    except ValueError as refused:
        assert "is invalid" in str(refused) or "has no comma" in str(refused)
        return
    assert isinstance(kind, str)
    assert isinstance(content, bytes)
