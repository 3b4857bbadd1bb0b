"""Copies modules into the environment of a Cog project, where Python imports them when it starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from appliance.domain.errors import WeightsError

_MODULES: Final = ("cog_shims", "cog_worker")
#: Environment variable of processes whose text streams write whole lines.
LINES: Final = "APPLIANCE_COG_LINES"
#: Python runs a line of a .pth file that begins with "import" when it starts.
_LINE_BUFFERING: Final = (
    f"import os, sys; os.environ.get({LINES!r}) and "
    "[each.reconfigure(line_buffering=True) for each in (sys.stdout, sys.stderr) if each]\n"
)


def install_modules(environment: Path) -> None:
    """Copy ``_MODULES`` into the environment of a project, and replace older copies.

    Raises:
        WeightsError: the environment has no site-packages folder.
    """
    texts = {f"{name}.py": Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES}
    _write(environment, {**texts, "cog_shims.pth": b"import cog_shims\n"})


def install_line_buffering(environment: Path) -> None:
    """Make processes with the variable ``LINES`` write whole lines.

    Cog's Python server removes spaces at the ends of what it reads at once. With unbuffered streams, this is
    often a part of a line.

    Raises:
        WeightsError: the environment has no site-packages folder.
    """
    _write(environment, {"cog_lines.pth": _LINE_BUFFERING.encode()})


def _write(environment: Path, texts: dict[str, bytes]) -> None:
    """Write files into the site-packages folder. The environment may be in use."""
    packages = next((environment / "lib").glob("python*/site-packages"), None)
    if packages is None:
        raise WeightsError(
            f"{environment} has no site-packages folder; remove {environment.parent} and run: appliance pull"
        )
    for name, text in texts.items():
        if not (packages / name).exists() or (packages / name).read_bytes() != text:
            written = packages / f".{name}.{os.getpid()}"
            written.write_bytes(text)
            written.replace(packages / name)
