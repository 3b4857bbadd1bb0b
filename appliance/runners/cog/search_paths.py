"""Environment variables with which processes find what a Cog project has installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: Folder of a build with the system packages of the project, and with what its commands put into /usr/local.
SYSTEM: Final = "system"
_PROGRAMS: Final = ("usr/local/bin", "usr/bin", "usr/sbin", "bin", "sbin", "usr/games")


def with_programs(variables: dict[str, str], build: Path) -> dict[str, str]:
    """Return ``variables`` with the programs and libraries of a build before those of the system."""
    system = build / SYSTEM
    programs = [build / "venv" / "bin", *(system / name for name in _PROGRAMS if (system / name).is_dir())]
    found = {"PATH": programs}
    if libraries := _library_folders(system):
        # For programs that run, and for compilers, which also need the headers.
        found |= {"LD_LIBRARY_PATH": libraries, "LIBRARY_PATH": libraries}
        found["PKG_CONFIG_PATH"] = [each / "pkgconfig" for each in libraries if (each / "pkgconfig").is_dir()]
        found["CPATH"] = [system / "usr/include", *system.glob("usr/include/*-linux-gnu*")]
    found["PERL5LIB"] = [system / "usr/share/perl5", *system.glob("usr/lib/*-linux-gnu*/perl5/*")]
    merged = dict(variables)
    for name, folders in found.items():
        before = [variables[name]] if variables.get(name) else []
        paths = [str(each) for each in folders if each.is_dir()]
        if paths:
            merged[name] = os.pathsep.join([*paths, *before])
    return merged


def _library_folders(system: Path) -> list[Path]:
    """Return the folders with shared libraries, shortest path first.

    Some packages have libraries in a folder of their own, such as ``pulseaudio`` and ``blas``, which the
    system would find through links that maintainer scripts make. These scripts are not run.
    """
    files = [file for top in ("usr/local/lib", "usr/lib", "lib") for file in (system / top).rglob("lib*.so*")]
    return sorted({file.parent for file in files}, key=lambda folder: (len(folder.parts), str(folder)))
