"""The SQL files, cut into their named parts."""

from __future__ import annotations

import re
from importlib import resources
from typing import Final


def parts(file: str, keyword: str) -> dict[str, str]:
    """The parts of an SQL file of this package that begin with ``-- keyword: name``, by name and in order."""
    text = resources.files("appliance.store").joinpath(file).read_text(encoding="utf-8")
    _, *rest = re.split(rf"^-- {keyword}: (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(rest[::2], rest[1::2], strict=True))


#: name -> one SQL statement
QUERIES: Final = parts("queries.sql", "query")

#: the steps that build the tables; a database that has had all of them is at user_version len(STEPS)
STEPS: Final = tuple(parts("schema.sql", "step").values())
