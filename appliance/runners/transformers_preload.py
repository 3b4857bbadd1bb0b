"""Imported by the zygote: fills a cache of transformers, which every load of a model would fill again.

The cache has several hundred compiled regular expressions for the names of weights. It takes a third of the
load of a small model.
"""

from __future__ import annotations

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("bert")  # of any model
