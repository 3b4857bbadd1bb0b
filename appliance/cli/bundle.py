"""The command `bundle`, which makes an archive to install the appliance without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from appliance.cli.options import ConfigOption, HomeOption, config_path, home_folder, load_config
from appliance.domain.units import readable_bytes
from appliance.driver import permissions

if TYPE_CHECKING:
    from appliance.bundle.create import BundlePlan


def bundle(
    file: Annotated[Path, typer.Argument(help="New file for the bundle, such as appliance.tar.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[MODELS]...", help="Further models, after --models.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "-m", help="Names of the models. Default: all models of models.yaml."),
    ] = None,
    variant: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(
            "--packages",
            help="Packages for machines with (gpu) or without (cpu) NVIDIA GPUs. "
            "Default: those for this machine.",
        ),
    ] = None,
    python: Annotated[
        bool,
        typer.Option(help="Include Python. Without it, the other machine needs the same version of Python."),
    ] = True,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Make one archive that installs the appliance and its models on a machine without a network.

    Contains the packages, uv, a Python, weights, models.yaml and licences, with checksums. There:
    tar xf FILE, then ./install and ./serve. Example: appliance bundle appliance.tar --models a/b c/d
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from appliance.bundle import create as bundles
    from appliance.bundle.toolchain import CHECKOUT

    checked = load_config(config)
    folder = home_folder(home, checked)
    chosen: Literal["cpu", "gpu"] = variant or (
        "gpu" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    )
    names = [*(models or ()), *(more or ())]
    planned = bundles.plan(CHECKOUT, checked, folder, names, chosen, python=python)
    _show(planned)
    permissions.restrict()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        created = bundles.create(
            CHECKOUT, config_path(config), checked, folder, file.absolute(), planned, progress
        )
    for note in created.notes:
        typer.secho(f"note: {note}", fg="yellow", err=True)
    typer.echo(f"{file}: {created.files} files, {readable_bytes(created.size)}")
    typer.echo(f"SHA-256 of the file: {created.sha256}")


def _show(planned: BundlePlan) -> None:
    typer.echo(f"models    {', '.join(model.name for model in planned.models)}")
    own = ", ".join(model.name for model in planned.models if model.environment is not None)
    more = f", plus the packages of the environments of {own} (size not known yet)" if own else ""
    size = readable_bytes(planned.packages)
    typer.echo(f"packages  {len(planned.wheels)} for {planned.variant}, {size}{more}")
    rest = f", and those of {', '.join(planned.missing)}, to be downloaded first" if planned.missing else ""
    typer.echo(f"weights   {readable_bytes(planned.weights)}{rest}")
    typer.echo(f"bundle    about {readable_bytes(planned.size)}{' and the missing weights' * bool(rest)}")
