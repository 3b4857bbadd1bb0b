"""Writes the table: see scripts/engine-arguments."""

from __future__ import annotations

from appliance.runners.vllm import engine_arguments
from scripts.engine_arguments.table import table, text

if __name__ == "__main__":
    engine_arguments.FILE.write_text(text(table()))
    print(f"written: {engine_arguments.FILE}")
