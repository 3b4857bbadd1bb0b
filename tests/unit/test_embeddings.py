"""The pure part of the embedding models; tests/e2e asks a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import PredictionFailed
from appliance.runners.embeddings import longest, parse


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ('["one", "two"]', ["one", "two"]),
        (["one", "two"], ["one", "two"]),
        ("just a text", ["just a text"]),
        ('"quoted"', ['"quoted"']),
        ("42", ["42"]),
        ("[not json", ["[not json"]),
        ('[""]', [""]),
    ],
)
def test_texts_as_callers_write_them(given: str | list[str], texts: list[str]) -> None:
    assert parse(given) == texts


@pytest.mark.parametrize("given", ["[]", [], "[1, 2]", '[["nested"]]', "[null]"])
def test_what_is_no_list_of_texts(given: str | list[str]) -> None:
    with pytest.raises(PredictionFailed, match="JSON list of strings"):
        parse(given)


def test_how_much_of_a_text_counts(tmp_path: Path) -> None:
    assert longest(tmp_path, 512) == 512
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    assert longest(tmp_path, 512) == 256
    assert longest(tmp_path, 128) == 128
