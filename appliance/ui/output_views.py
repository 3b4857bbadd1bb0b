"""How pages show outputs of models, by their shape: transcripts, boxes, masks, scores, vectors and files.

The shapes are those of the appliance's own kinds of models, and of the models on Replicate that they stand
in for.
An output of no known shape is shown by ``markup.value``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from appliance.ui import markup
from appliance.ui.languages import gettext as _
from appliance.ui.media import MediaFile, media_file

#: Vectors that are compared with each other; more would make the table too wide.
MAX_VECTORS: Final = 12
_MAX_ROWS: Final = 500
_IMAGE_INPUTS: Final = ("image", "input_image", "query_image", "image_input")
_AUDIO_INPUTS: Final = ("audio", "audio_file", "file")
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """A box or a polygon in pixels of the input image."""

    points: tuple[tuple[float, float], ...]
    label: str
    score: float | None


def view(output: Any, files: Mapping[str, MediaFile] = {}) -> Markup:
    """Return an output as HTML. ``files`` are the input files that the page may show, by the input's name."""
    try:
        shown = _structured(output, files)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        shown = None  # it only begins like a known shape
    if shown is None:
        return markup.value(output)
    raw = json.dumps(output, ensure_ascii=False, indent=2)
    return markup.render("output_with_json.html", shown=shown, json=markup.text(raw))


def _structured(output: Any, files: Mapping[str, MediaFile]) -> Markup | None:
    """Return HTML for an output of a known shape; None for others."""
    return _of_list(output, files) if isinstance(output, list) else _of_object(output, files)


def _of_object(output: Any, files: Mapping[str, MediaFile]) -> Markup | None:
    match output:
        case {"segments": [{"start": int() | float(), "text": str()}, *_] as segments}:
            return _transcript(output, segments, files)
        case {"detections": [{"bbox": [_, _, _, _]}, *_] as found}:
            return _on_image([_box(each) for each in found], files, output.get("result_image"))
        case {"lines": [{"text": str(), "box": [[_, _], *_]}, *_] as lines, "text": str(text)}:
            boxes = [Box(_corners(each["box"]), each["text"], each.get("score")) for each in lines]
            return markup.text(text) + _on_image(boxes, files)
        case {"grey_depth": str(url)}:
            return _overlay([("", url)], files)
    return None


def _of_list(output: list[Any], files: Mapping[str, MediaFile]) -> Markup | None:
    match output:
        case [{"mask": str()}, *_]:
            masks = [
                (f"{each['label']} {_percent(each.get('score'))}".strip(), each["mask"]) for each in output
            ]
            return _overlay(masks, files)
        case [{"box": {"xmin": _, "ymin": _, "xmax": _, "ymax": _}, "label": str()}, *_]:
            return _on_image([_box(each) for each in output], files)
        case [{"index": int(), "score": float() | int(), "document": _}, *_]:
            return _bars([(_plain(each["document"]), each["score"]) for each in output], ordered=True)
        case [{"label": str(), "score": float() | int()}, *_]:
            return _bars([(each["label"], each["score"]) for each in output])
        case [{"start": int() | float(), "end": int() | float()}, *_] if all(
            len(each) == 2 for each in output
        ):
            return _spans(output, files)
        case [{"embedding": [int() | float(), *_]}, *_]:
            names = [
                _plain(each.get("input", each.get("text", number))) for number, each in enumerate(output, 1)
            ]
            return _vectors(names, [each["embedding"] for each in output])
        case [[float(), *_], *_] if all(_is_vector(each) for each in output):
            return _vectors([str(number) for number in range(1, len(output) + 1)], output)
    return None


# -- speech


def _transcript(output: Mapping[str, Any], segments: Sequence[Any], files: Mapping[str, MediaFile]) -> Markup:
    text = output.get("transcription") or "".join(str(each["text"]) for each in segments)
    rows = [
        {
            "start": float(each["start"]),
            "end": float(each.get("end", each["start"])),
            "text": str(each["text"]),
        }
        for each in segments[:_MAX_ROWS]
    ]
    return markup.render(
        "output_transcript.html",
        text=str(text).strip(),
        language=output.get("detected_language"),
        segments=rows,
        audio=_first(files, _AUDIO_INPUTS, "audio/"),
        hidden=len(segments) - len(rows),
    )


def _spans(output: Sequence[Mapping[str, Any]], files: Mapping[str, MediaFile]) -> Markup:
    rows = [
        {"start": float(each["start"]), "end": float(each["end"]), "text": ""} for each in output[:_MAX_ROWS]
    ]
    audio = _first(files, _AUDIO_INPUTS, "audio/")
    return markup.render(
        "output_transcript.html",
        text="",
        language=None,
        segments=rows,
        audio=audio,
        hidden=len(output) - len(rows),
    )


# -- images


def _box(found: Mapping[str, Any]) -> Box:
    sides = found.get("bbox") or [found["box"][side] for side in _SIDES]
    left, top, right, bottom = (float(side) for side in sides)
    score = found.get("score", found.get("confidence"))
    return Box(((left, top), (right, top), (right, bottom), (left, bottom)), str(found["label"]), score)


def _corners(points: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)


def _on_image(boxes: Sequence[Box], files: Mapping[str, MediaFile], drawn: str | None = None) -> Markup:
    """Return the input image with ``boxes`` on it; without that image, the image ``drawn`` by the model."""
    image = _first(files, _IMAGE_INPUTS, "image/")
    rows = [
        (each.label, _percent(each.score), " ".join(f"{round(x)},{round(y)}" for x, y in each.points[:3:2]))
        for each in boxes[:_MAX_ROWS]
    ]
    return markup.render(
        "output_boxes.html",
        image=image,
        boxes=boxes[:_MAX_ROWS] if image else (),
        drawn=markup.figure(drawn) if drawn and image is None else Markup(),
        table=markup.table((_("Label"), _("Score"), _("Corners in pixels")), rows),
    )


def _overlay(layers: Sequence[tuple[str, str]], files: Mapping[str, MediaFile]) -> Markup:
    """Return images to be laid over the input image; alone if the page may not show that."""
    found = [(name, media_file(url, number)) for number, (name, url) in enumerate(layers, 1)]
    image = _first(files, _IMAGE_INPUTS, "image/")
    shown = [(name, file) for name, file in found if file is not None and file.kind.startswith("image/")]
    return markup.render("output_overlay.html", image=image, layers=shown)


# -- numbers


def _bars(rows: Sequence[tuple[str, float]], *, ordered: bool = False) -> Markup:
    shown = rows[:_MAX_ROWS]
    low, high = min(0.0, *(score for _, score in shown)), max(score for _, score in shown)
    width = (high - low) or 1.0
    return markup.render(
        "output_scores.html",
        rows=[(name, f"{score:.3f}", 100 * (score - low) / width) for name, score in shown],
        ordered=ordered,
    )


def _vectors(names: Sequence[str], vectors: Sequence[Sequence[float]]) -> Markup:
    """Return a table of the similarities (cosines) of the first vectors."""
    some = [[float(number) for number in vector] for vector in vectors[:MAX_VECTORS]]
    dimensions = len(some[0])
    table = [[_cosine(one, other) for other in some] for one in some]
    return markup.render(
        "output_vectors.html",
        names=names[: len(some)],
        table=table,
        count=len(vectors),
        dimensions=dimensions,
    )


def _cosine(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the cosine of the angle between two vectors; None if they cannot be compared."""
    lengths = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or not lengths:
        return None
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths


def _is_vector(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(number, int | float) for number in given)


def _percent(score: Any) -> str:
    return f"{100 * score:.0f} %" if isinstance(score, int | float) else ""


def _plain(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _first(files: Mapping[str, MediaFile], names: Sequence[str], kind: str) -> MediaFile | None:
    """Return the file of the first input in ``names`` that is of ``kind``, else of any input."""
    for name in (*names, *files):
        if name in files and files[name].kind.startswith(kind):
            return files[name]
    return None
