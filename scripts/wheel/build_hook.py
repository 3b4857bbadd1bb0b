"""Hook of Hatchling, which builds the wheel: adds files that the package needs outside of a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Page that exists once the manual has been built.
_MANUAL: Final = "appliance/assets/manual/index.html"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]  # Hatchling is not installed
    """Adds models.yaml to the package. A checkout has it next to the package instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; refuse to build a wheel without the manual.

        Raises:
            FileNotFoundError: the manual has not been built.
        """
        if version == "editable":
            return
        root = Path(self.root)
        if not (root / _MANUAL).is_file():
            raise FileNotFoundError(f"{root / _MANUAL} is missing: build the wheel with scripts/build-wheel")
        build_data["force_include"][str(root / "models.yaml")] = "appliance/assets/models.yaml"
