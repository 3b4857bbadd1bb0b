"""Copies modules into the environment of a Cog project, where Python imports them when it starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from appliance.domain.errors import WeightsError

_MODULES: Final = ("cog_shims", "cog_worker")


def install_modules(environment: Path) -> None:
    """Copy ``_MODULES`` into the environment of a project, and replace older copies.

    The environment may be in use.

    Raises:
        WeightsError: the environment has no site-packages folder.
    """
    packages = next((environment / "lib").glob("python*/site-packages"), None)
    if packages is None:
        raise WeightsError(
            f"{environment} has no site-packages folder; remove {environment.parent} and run: appliance pull"
        )
    texts = {f"{name}.py": Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MODULES}
    texts["cog_shims.pth"] = b"import cog_shims\n"
    for name, text in texts.items():
        if not (packages / name).exists() or (packages / name).read_bytes() != text:
            written = packages / f".{name}.{os.getpid()}"
            written.write_bytes(text)
            written.replace(packages / name)
