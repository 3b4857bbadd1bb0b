"""The parts of a bundle that install it: uv, a Python, and the wheel of the appliance."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Final

import uv

from appliance.bundle.wheels import run_uv
from appliance.domain.errors import ApplianceError

#: The checkout that this package is in. A package that was installed from a wheel has no checkout.
CHECKOUT: Final = Path(__file__).parents[2]
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_MANUAL: Final = "appliance/assets/manual/index.html"


def check_checkout(root: Path) -> None:
    """Check that ``root`` has all that a bundle needs.

    Raises:
        ApplianceError: it is no checkout, or its manual has not been built.
    """
    if not (root / "requirements").is_dir() or not (root / "pyproject.toml").exists():
        raise ApplianceError(
            "a bundle is made from a checkout, which has the lock files of the packages: run "
            "`.venv/bin/appliance bundle` in a checkout"
        )
    if not (root / _MANUAL).exists():
        raise ApplianceError("the manual, which the bundle contains, has not been built: run scripts/install")


def uv_program() -> str:
    return str(uv.find_uv_bin())


def build_wheel(root: Path, folder: Path) -> Path:
    """Build the wheel of the appliance into ``folder``.

    Raises:
        ApplianceError: uv cannot build it.
    """
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [uv_program(), "build", "--quiet", "--wheel", "--out-dir", str(folder), str(root)]
    run_uv(command, "the wheel of the appliance cannot be built")
    (built,) = folder.glob("*.whl")
    return built


def pack_python(folder: Path) -> Path:
    """Download a Python of this version that runs in any folder, and return a tar archive of it.

    An archive that is in ``folder`` already is used.

    Raises:
        ApplianceError: uv cannot download it.
    """
    packed = folder / f"python-{VERSION}.tar"
    if packed.exists():
        return packed
    installed = folder / "python"
    # without --quiet, with which this command hides the reason of an error
    command = [uv_program(), "python", "install", "--no-bin", "--install-dir", str(installed)]
    try:
        run_uv([*command, VERSION], f"Python {VERSION} cannot be downloaded")
    except ApplianceError as error:
        raise ApplianceError(
            f"{error.detail}: set UV_PYTHON_INSTALL_MIRROR to a mirror of "
            "https://github.com/astral-sh/python-build-standalone/releases/download, or leave Python out "
            f"with --no-python; then the other machine needs Python {VERSION}"
        ) from error
    found = [each for each in installed.glob("*/bin/python3") if not each.parents[1].is_symlink()]
    partial = packed.with_suffix(".part")
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(found[0].parents[1], "python")
    partial.rename(packed)
    return packed
