"""Makes the Debian packages of a Cog project available in its build, without changing the system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from appliance.builds.build_process import BuildProcess
from appliance.domain.errors import WeightsError
from appliance.runners.cog.search_paths import SYSTEM

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")
#: Packages of older systems, for which published projects were written -> their name in current systems.
_RENAMED: Final = {
    "libgl1-mesa-glx": "libgl1",
    "libglib2.0-0": "libglib2.0-0t64",
    "libasound2": "libasound2t64",
}
#: A line of ``apt-get --simulate``: a package that it would install, and the version.
_INSTALL: Final = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", re.MULTILINE)
#: Packages that are never unpacked into a build: programs of the build need the system's own.
_CORE: Final = frozenset({"libc6", "libc-bin", "dpkg", "libstdc++6", "libgcc-s1"})


def install(names: tuple[str, ...], build: BuildProcess) -> None:
    """Unpack the packages that the system lacks, and their dependencies, into the folder of the build.

    If this fails, the build goes on, because the project may work without them. Its log gets the reason and
    the command that installs them.

    Raises:
        WeightsError: a name is not the name of a Debian package.
    """
    checked(names, build)
    missing = [name for name in names if not _is_installed(name)]
    if not names or not missing:
        return
    build.step(f"unpacking system packages: {' '.join(missing)}")
    if not all(map(shutil.which, ("apt-get", "dpkg-query", "dpkg-deb"))):
        build.note(f"build.system_packages: this system has no apt-get; install {' '.join(missing)}")
        return
    known = [name if _is_known(name) else _RENAMED.get(name, name) for name in missing]
    for name, present in zip(missing, known, strict=True):
        if name != present:
            build.say(f"the package {name} is called {present} here")
    try:
        _unpack([name for name in known if not _is_installed(name)], build)
    except WeightsError as error:
        build.say(error.detail)
        build.note(
            f"build.system_packages: {' '.join(missing)} cannot be unpacked; install the packages with: "
            f"sudo apt-get update && sudo apt-get install --no-install-recommends {' '.join(known)}"
        )


def checked(names: tuple[str, ...], build: BuildProcess) -> tuple[str, ...]:
    """Return ``names``.

    Raises:
        WeightsError: a name is not the name of a Debian package.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise build.error(f"build.system_packages: {name!r} is not the name of a package")
    return names


def _is_installed(name: str) -> bool:
    name = name.partition("=")[0]
    return any("installed" in status for status in _query("-W", "-f", "${db:Status-Status}\n", name))


def _query(*arguments: str) -> list[str]:
    query = shutil.which("dpkg-query")
    if query is None:
        return []
    done = subprocess.run([query, *arguments], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.split("\n") if line not in {"", "not-installed"}]


def _is_known(name: str) -> bool:
    """Return whether apt's lists have a package of this name that can be installed."""
    done = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", name.partition("=")[0]], capture_output=True, check=False
    )
    return done.returncode == 0 and bool(done.stdout)


def _unpack(names: list[str], build: BuildProcess) -> None:
    """Download and unpack packages and the dependencies that the system lacks.

    Raises:
        WeightsError: a command failed, or a core library would be replaced.
    """
    if not names:
        return
    simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", "--", *names]
    done = subprocess.run(
        simulate, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode != 0:
        raise WeightsError(f"apt-get cannot install them: {(done.stderr or done.stdout).strip()[-1000:]}")
    wanted = _INSTALL.findall(done.stdout)
    if core := sorted(_CORE & {name.partition(":")[0] for name, _ in wanted}):
        raise WeightsError(f"they need another version of {', '.join(core)}, which the build cannot replace")
    system = build.folder / SYSTEM
    system.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # apt-get downloads as another user if it is called by root
        packages = [f"{name}={version}" for name, version in wanted]
        build.run(["apt-get", "download", "--quiet", "--quiet", *packages], Path(folder))
        for file in sorted(Path(folder).glob("*.deb")):
            build.run(["dpkg-deb", "--extract", str(file), str(system)], Path(folder))
    build.say(
        f"unpacked {' '.join(name for name, _ in wanted)}; the maintainer scripts of packages are not run"
    )
