"""Program that puts weights of an unpacked bundle into the data folder, and builds environments of models.

``python -m appliance.bundle.place BUNDLE [HOME]`` runs on the other machine, after ``install`` has checked
all files and installed the packages. Weights become hard links if both folders are on one disk, else copies.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, TaskID

from appliance import config
from appliance.builds import environments
from appliance.bundle import environment_wheels
from appliance.bundle.models import WEIGHTS
from appliance.config import ModelConfig
from appliance.domain.errors import ApplianceError, ConfigError, WeightsError
from appliance.domain.units import readable_bytes
from appliance.driver import permissions
from appliance.weights import locations

#: File in the folder of the bundle: the environments of models are not built, because ``models.yaml`` could
#: not be read. The script ``install`` looks for it too.
PENDING: Final = ".environments-pending"


def place(bundle: Path, home: Path, progress: Progress) -> None:
    """Add the weights of ``bundle`` that the data folder does not have yet; a folder appears when complete.

    Raises:
        ApplianceError: the weights do not fit on the disk, or the data folder cannot be written.
    """
    root = locations.root(home)
    folders = [
        folder
        for folder in bundle.glob(f"{WEIGHTS}/*/*")
        if not (root / folder.parent.name / folder.name).exists()
    ]
    try:
        root.mkdir(parents=True, exist_ok=True)
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        free = shutil.disk_usage(root).free
        if bundle.stat().st_dev != root.stat().st_dev and size > free:
            raise ApplianceError(
                f"the data folder {home} has {readable_bytes(free)} of free space, and the weights need "
                f"{readable_bytes(size)}: free space, or choose another data folder with --home"
            )
        task = progress.add_task("weights", total=size)
        for folder in folders:
            _place(folder, root, progress, task)
    except OSError as error:
        raise ApplianceError(
            f"the weights cannot be put into the data folder {home}: {error.filename}: {error.strerror}"
        ) from error


def _place(folder: Path, root: Path, progress: Progress, task: TaskID) -> None:
    partial = root / ".partial" / f"{folder.name}.bundle"
    shutil.rmtree(partial, ignore_errors=True)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target = partial / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(file, target)
            progress.advance(task, file.stat().st_size)
    final = root / folder.parent.name / folder.name
    final.parent.mkdir(exist_ok=True)
    partial.rename(final)


def build_environments(bundle: Path, home: Path, models: Sequence[ModelConfig]) -> None:
    """Build the environments of ``models`` from the wheels of the bundle, unless they exist.

    An environment that cannot be built is named on stderr; only its models are not served.
    """
    for model in models:
        if model.environment is None or environments.is_built(home, model):
            continue
        wheels = bundle / environment_wheels.folder(model)
        if not wheels.is_dir():  # a model that was added to models.yaml here
            continue
        print(f"building the environment of model {model.name}")
        try:
            environments.build(home, model, wheels=wheels)
        except WeightsError as error:
            print(
                f"install: warning: {error.detail}\nThe model {model.name} will not be served. Correct the "
                f"reason, and run ./install --home {shlex.quote(str(home))} again.",
                file=sys.stderr,
            )


def _build_all(bundle: Path, home: Path) -> None:
    """Build the environments of the models in ``models.yaml``.

    If the file cannot be read now, because a variable is not set or because of a mistake, the file
    ``PENDING`` tells the script ``install`` to try again.
    """
    pending = bundle / PENDING
    if not (bundle / environment_wheels.FOLDER).is_dir():
        pending.unlink(missing_ok=True)
        return
    try:
        models = config.load(bundle / config.CONFIG_FILE).models
    except ConfigError as error:
        pending.touch()
        print(
            f"install: warning: the environments of models are not built yet: {error.detail}: correct this; "
            "the next ./install or ./serve builds them",
            file=sys.stderr,
        )
        return
    build_environments(bundle, home, models)
    pending.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    bundle = Path(arguments[0])
    permissions.restrict()
    try:
        if len(arguments) > 1:
            home = Path(arguments[1]).absolute()
        else:
            home = config.home(config.load(bundle / config.CONFIG_FILE))
        with Progress(console=Console(stderr=True)) as progress:
            place(bundle, home, progress)
    except ApplianceError as error:
        print(f"install: {error.detail}", file=sys.stderr)
        return 1
    print(f"the weights are in {home / WEIGHTS}")
    _build_all(bundle, home)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
