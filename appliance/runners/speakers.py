"""Clusters speech by speaker, from one speaker embedding per window of speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

WINDOW: Final = 1.6  # seconds of speech of one embedding; the voice encoder was trained with this length
_STEP: Final = 0.4  # seconds from the start of one window to the next
_MOST_WINDOWS: Final = 4000  # of a recording; windows of longer speech are further apart
_SAME_SPEAKER: Final = 0.27  # largest average distance (1 - cosine) between embeddings of one speaker
#: Minimum seconds of speech for a cluster to count as a speaker. Windows that span a change of speaker can
#: form smaller clusters.
_SHORTEST_SPEAKER: Final = 1.6
_FRAME: Final = 0.1  # seconds; speakers change only between frames
_SHORTEST_TURN: Final = 0.5  # seconds; a shorter change of speaker is ignored
_PAUSE: Final = 0.5  # seconds of silence that do not end a turn


class Span(NamedTuple):
    """A part of the audio, in seconds."""

    start: float
    end: float


class Turn(NamedTuple):
    """A part of the audio in which one speaker speaks, in seconds."""

    start: float
    end: float
    speaker: int  # from 0, in the order in which the speakers begin


def name(speaker: int) -> str:
    """Return the name of a speaker, as in pyannote.audio."""
    return f"SPEAKER_{speaker:02}"


def windows(speech: Sequence[Span]) -> list[Span]:
    """Return overlapping windows of the parts with speech; no window is longer than ``WINDOW``."""
    total = sum(each.end - each.start for each in speech)
    step = min(WINDOW, max(_STEP, total / _MOST_WINDOWS))
    return [window for span in speech for window in _windows_of(span, step)]


def _windows_of(span: Span, step: float) -> Iterator[Span]:
    start = span.start
    while start + WINDOW < span.end:
        yield Span(start, start + WINDOW)
        start += step
    yield Span(max(span.start, span.end - WINDOW), span.end)


def turns(speech: Sequence[Span], windows: Sequence[Span], embeddings: Any, count: int | None) -> list[Turn]:
    """Return the turns of all speakers, ordered by time.

    Args:
        speech: the parts of the audio with speech, in order.
        windows: the windows of ``speech``, from the function ``windows``.
        embeddings: the embedding of each window, of length 1, as an array.
        count: number of speakers; None: as many as differ. There may be fewer if the audio is short.
    """
    if not speech:
        return []
    centroids = _centroids(embeddings, [each.end - each.start for each in windows], count)
    rest = list(zip(windows, embeddings, strict=True))
    made: list[Turn] = []
    for span in speech:
        inside = [(window, embedding) for window, embedding in rest if window.start < span.end]
        rest = rest[len(inside) :]
        made += _turns_of(span, inside, centroids)
    return _in_order(_joined(made))


def _centroids(embeddings: Any, lengths: Sequence[float], count: int | None) -> Any:
    """Return the centroid of each speaker's embeddings, as an array."""
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(embeddings) == 1 or count == 1:
        return _mean(embeddings)[None]
    chosen = np.linspace(0, len(embeddings) - 1, min(len(embeddings), _MOST_WINDOWS)).round().astype(int)
    some, seconds = embeddings[chosen], np.asarray(lengths)[chosen] * _STEP / WINDOW
    tree = linkage(some, method="average", metric="cosine")
    if count is None:
        labels = fcluster(tree, _SAME_SPEAKER, criterion="distance")
        return _large_clusters(some, labels, seconds, most=None)
    for clusters in range(count, len(some) + 1):  # more clusters, until enough of them are large
        labels = fcluster(tree, clusters, criterion="maxclust")
        centroids = _large_clusters(some, labels, seconds, most=count)
        if len(centroids) == count:
            return centroids
    return _large_clusters(some, fcluster(tree, count, criterion="maxclust"), seconds, most=count)


def _large_clusters(embeddings: Any, labels: Labels, seconds: Any, most: int | None) -> Any:
    """Return the centroids of the clusters that are long enough for a speaker, the longest first."""
    import numpy as np

    totals = {label: float(seconds[labels == label].sum()) for label in np.unique(labels)}
    largest = sorted(totals, key=lambda label: -totals[label])
    kept = [label for label in largest if totals[label] >= _SHORTEST_SPEAKER][:most] or largest[:1]
    return np.stack([_mean(embeddings[labels == label]) for label in kept])


def _mean(embeddings: Any) -> Any:
    import numpy as np

    mean = embeddings.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-8)


def _turns_of(span: Span, inside: Sequence[tuple[Span, Any]], centroids: Any) -> Iterator[Turn]:
    """Yield the turns of one part with speech; ``inside`` are its windows and their embeddings."""
    count = max(1, round((span.end - span.start) / _FRAME))
    length = (span.end - span.start) / count
    similarities = [(window, centroids @ embedding) for window, embedding in inside]
    speakers: list[int] = []
    for number in range(count):
        middle = span.start + (number + 0.5) * length
        near = [scores for window, scores in similarities if window.start <= middle <= window.end]
        speakers.append(int(sum(near).argmax()))
    at = 0
    for speaker, run in groupby(_smooth(speakers, round(_SHORTEST_TURN / _FRAME))):
        frames = len(list(run))
        yield Turn(span.start + at * length, span.start + (at + frames) * length, speaker)
        at += frames


def _smooth(speakers: list[int], shortest: int) -> list[int]:
    """Return the speakers of frames; runs shorter than ``shortest`` get the speaker before or after them."""
    runs = [[speaker, len(list(run))] for speaker, run in groupby(speakers)]
    while len(runs) > 1 and min(length for _, length in runs) < shortest:
        at = min(range(len(runs)), key=lambda number: runs[number][1])
        neighbours = [number for number in (at - 1, at + 1) if 0 <= number < len(runs)]
        longest = max(neighbours, key=lambda number: runs[number][1])
        runs[at][0] = runs[longest][0]
        merged = [
            [speaker, sum(length for _, length in group)]
            for speaker, group in ((key, list(each)) for key, each in groupby(runs, key=lambda run: run[0]))
        ]
        runs = merged
    return [speaker for speaker, length in runs for _ in range(length)]


def _joined(made: Sequence[Turn]) -> list[Turn]:
    """Join turns of the same speaker with only a short silence between them."""
    joined: list[Turn] = []
    for turn in made:
        last = joined[-1] if joined else None
        if last is not None and last.speaker == turn.speaker and turn.start - last.end <= _PAUSE:
            joined[-1] = last._replace(end=turn.end)
        else:
            joined.append(turn)
    return joined


def _in_order(made: Sequence[Turn]) -> list[Turn]:
    """Number the speakers in the order in which they begin."""
    numbers: dict[int, int] = {}
    for turn in made:
        numbers.setdefault(turn.speaker, len(numbers))
    return [turn._replace(speaker=numbers[turn.speaker]) for turn in made]


def speaker_at(start: float, end: float, made: Sequence[Turn]) -> int | None:
    """Return the speaker with the most speech between ``start`` and ``end``.

    If nobody speaks then, return the speaker of the nearest turn; None if there are no turns.
    """
    if not made:
        return None
    middle = (start + end) / 2

    def closeness(turn: Turn) -> tuple[float, float]:
        overlap = max(0.0, min(end, turn.end) - max(start, turn.start))
        return overlap, -max(turn.start - middle, middle - turn.end, 0.0)

    return max(made, key=closeness).speaker
