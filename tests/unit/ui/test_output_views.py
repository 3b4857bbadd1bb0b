"""How outputs are shown, by their shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.ui import output_views
from appliance.ui.media import MediaFile
from tests.unit.ui.test_markup import HOSTILE, Reader, inert

BASE = "http://models.example.org/outputs"
IMAGE = MediaFile("image/png", "cat.png", "./_ui/api/v1/files/x/download", inline=False)
SPEECH = MediaFile("audio/wav", "said.wav", "./_ui/api/v1/files/y/download", inline=False)
MASK = f"{BASE}/{'0' * 64}/mask.png"


def packed(read: Reader) -> str:
    """Return the text without spaces: cells of a table have none between them."""
    return "".join(read.said.split())


def transcript(text: str) -> dict[str, Any]:
    segments = [{"start": 0.0, "end": 1.5, "text": text}, {"start": 61.25, "end": 62, "text": " two"}]
    return {"transcription": text, "detected_language": "en", "segments": segments}


def test_a_transcript_is_text_first_and_its_times_move_the_player() -> None:
    read = inert(output_views.view(transcript("one"), {"audio": SPEECH}))
    assert packed(read).startswith("one")
    assert "1:01.2" in read.said
    assert [each["src"] for tag, each in read.elements if tag == "audio"] == [SPEECH.url]
    assert len([each for tag, each in read.elements if each.get("class") == "time"]) == 2
    alone = inert(output_views.view(transcript("one")))
    assert not [each for tag, each in alone.elements if each.get("class") == "time"]


@pytest.mark.parametrize(
    "output",
    [
        {"detections": [{"bbox": [1, 2, 30, 40], "label": "cat", "confidence": 0.9}], "result_image": MASK},
        [{"box": {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}, "label": "cat", "score": 0.9}],
    ],
)
def test_boxes_are_drawn_on_the_input_image(output: Any) -> None:
    read = inert(output_views.view(output, {"image": IMAGE}))
    (points,) = (each["points"] for tag, each in read.elements if tag == "polygon")
    assert (points or "").split() == ["1.0,2.0", "30.0,2.0", "30.0,40.0", "1.0,40.0"]
    assert "cat90%1,230,40" in packed(read)
    without = inert(output_views.view(output))
    assert not [tag for tag, _ in without.elements if tag == "polygon"]
    assert "cat90%" in packed(without)


def test_masks_and_depth_lie_over_the_input_image() -> None:
    masks = [{"label": "cat", "score": None, "box": None, "mask": MASK}]
    for output in (masks, {"grey_depth": MASK, "minimum": 0.0, "maximum": 2.0}):
        read = inert(output_views.view(output, {"image": IMAGE}))
        images = [each for tag, each in read.elements if tag == "img"]
        assert [each["src"] for each in images] == [IMAGE.url, f"./outputs/{'0' * 64}/mask.png"]
        assert images[1]["class"] == "layer"


def test_scores_are_bars_in_their_order() -> None:
    ranked = [
        {"index": 1, "score": 4.0, "document": "near"},
        {"index": 0, "score": -4.0, "document": {"text": "far"}},
    ]
    read = inert(output_views.view(ranked))
    widths = [each["style"] for tag, each in read.elements if tag == "i"]
    assert widths == ["width:100.0%", "width:0.0%"]
    assert 'near4.000{"text":"far"}-4.000' in packed(read)
    labels = inert(output_views.view([{"label": "cat", "score": 0.25}, {"label": "dog", "score": 0.75}]))
    assert "cat0.250dog0.750" in packed(labels)


def test_vectors_are_compared() -> None:
    read = inert(output_views.view([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
    assert "11.000.001.00–" in packed(read)  # the first row
    named = output_views.view(
        [{"input": "a cat", "embedding": [1.0, 1.0]}, {"input": "a dog", "embedding": [1.0, -1.0]}]
    )
    assert "a cat" in inert(named).said


def test_every_shape_can_still_be_read_as_json_and_no_text_becomes_html() -> None:
    for text in HOSTILE:
        outputs: list[Any] = [
            transcript(text),
            {"detections": [{"bbox": [1, 2, 3, 4], "label": text, "confidence": 0.5}]},
            {"text": text, "lines": [{"text": text, "score": 1.0, "box": [[0, 0], [1, 0], [1, 1], [0, 1]]}]},
            [{"mask": MASK, "label": text, "score": 0.5}],
            [{"index": 0, "score": 1.0, "document": text}],
            [{"label": text, "score": 1.0}],
            [{"input": text, "embedding": [1.0]}, {"input": text, "embedding": [1.0]}],
        ]
        for output in outputs:
            read = inert(output_views.view(output, {"image": IMAGE, "audio": SPEECH}))
            assert text in read.said or json.dumps(text) in read.said, output
            assert "JSON" in read.said


@pytest.mark.parametrize(
    "output",
    [
        None,
        "text",
        [],
        {},
        [[]],
        ["a", "b"],
        [1.0, 2.0],
        {"segments": []},
        [{"label": 1, "score": "x"}],
        [["a"]],
        {"detections": [{"bbox": [0, 0, 1, 1], "class": "cat"}]},  # these only begin like a known shape
        [{"mask": "…"}],
        [{"label": "a", "score": 1.0}, {"label": "b", "score": None}],
        [{"start": 1, "end": 2}, 3],
        [{"embedding": [1.0]}, {"error": "x"}],
    ],
)
def test_other_outputs_are_shown_as_before(output: Any) -> None:
    assert "<details" not in output_views.view(output)
