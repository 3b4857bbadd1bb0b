"""Starts the command of a Cog image in a sandbox, see ``sandbox_launcher``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.errors import LoadFailed

_LAUNCHER: Final = Path(__file__).with_name("sandbox_launcher.py")
#: Port of Cog's server in the sandbox; the sandbox has its own network namespace.
PORT: Final = 5000
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
_NAME_SERVER: Final = "nameserver 10.0.2.3\n"  # that of slirp4netns
#: Places in the sandbox where the driver's libraries and program are mounted.
DRIVER_FOLDER: Final = "/run/nvidia-driver"
NVIDIA_SMI: Final = "/usr/bin/nvidia-smi"
_DRIVER_LIBRARY: Final = re.compile(
    r"^\s*((?:libcuda|libcudadebugger|libnvidia-|libnvcuvid|libnvoptix)\S*\.so\S*) "
    r"\([^)]*(?:x86-64|AArch64)[^)]*\) => (\S+)$",
    re.MULTILINE,
)


class SandboxedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command that runs in a sandbox."""

    arguments: Sequence[str]
    folder: str  # working folder in the sandbox
    environment: dict[str, str]  # all environment variables
    gpus: bool  # whether the command may use NVIDIA GPUs


class Sandbox:
    """A sandbox with the root folder of an unpacked image, and its command once ``run`` was called.

    ``listener`` accepts connections from programs in the sandbox only. ``socket`` is the path of a Unix
    socket; connections to it reach ``PORT`` of the sandbox.
    """

    def __init__(self, model: str, scratch: Path, network: bool) -> None:
        """``scratch`` is an empty folder for all files that programs in the sandbox write.

        With ``network``, programs in the sandbox can connect to other machines.
        """
        self._model = model
        self._scratch = scratch
        self._network: Process | None = None
        self._with_network = network
        self._control: socket.socket
        self.socket = scratch / "server.sock"
        self.process: Process
        self.listener: socket.socket

    async def create(self, image: Path, output: int) -> None:
        """Create the sandbox; its programs write to the file descriptor ``output``.

        Raises:
            LoadFailed: a program is missing, or the kernel refuses a part of the sandbox.
        """
        self._require("bwrap", "bubblewrap")
        self._control, inherited = socket.socketpair()
        with inherited:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCHER), str(inherited.fileno())),
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[inherited.fileno()],
            )
        self._send({"image": str(image), "scratch": str(self._scratch)})
        message, descriptors, *_ = await asyncio.to_thread(socket.recv_fds, self._control, 4096, 1)
        if not descriptors:
            reason = message.decode(errors="replace").strip() or "its launcher ended"
            raise LoadFailed(
                f"the sandbox of {self._model} cannot be created: {reason}: allow user namespaces for the "
                "user of the appliance, and put the folder for temporary files (TMPDIR) on a disk"
            )
        self.listener = socket.socket(fileno=descriptors[0])
        if self._with_network:
            await self._connect_network(output)

    def run(self, command: SandboxedCommand) -> None:
        """Start the command. The launcher, ``process``, ends with its exit status."""
        options = [*_root_options(), *(_gpu_options(self._model) if command.gpus else ())]
        variables = dict(command.environment)
        if command.gpus:
            folders = (DRIVER_FOLDER, variables.get("LD_LIBRARY_PATH", ""))
            variables["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
        name_servers = _NAME_SERVER if self._with_network else ""
        for name, text in (("hosts", _HOSTS), ("resolv.conf", name_servers)):
            (self._scratch / name).write_text(text)
            options += ["--ro-bind", str(self._scratch / name), f"/etc/{name}"]
        for name, value in variables.items():
            options += ["--setenv", name, value]
        options += ["--chdir", command.folder]
        arguments = ["--", *command.arguments]
        self._send(
            {"options": options, "command": arguments, "socket": str(self.socket), "port": PORT},
        )

    def close(self) -> None:
        """Kill all programs in the sandbox."""
        self._control.close()
        if self._network is not None and self._network.returncode is None:
            self._network.terminate()

    def _send(self, message: Any) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def _require(self, program: str, package: str) -> None:
        if shutil.which(program) is None:
            raise LoadFailed(
                f"model {self._model} cannot run: {package} is not installed: "
                f"install the Debian package {package}"
            )

    async def _connect_network(self, output: int) -> None:
        self._require("slirp4netns", "slirp4netns")
        reader, writer = os.pipe()
        try:
            self._network = await asyncio.create_subprocess_exec(
                *("slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback"),
                *(f"--ready-fd={writer}", str(self.process.pid), "tap0"),
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[writer],
            )
            os.close(writer)
            writer = -1
            if not await asyncio.to_thread(os.read, reader, 1):
                raise LoadFailed(
                    f"the sandbox of {self._model} cannot reach the network: slirp4netns failed: "
                    "see the log of the model"
                )
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)


def _environment() -> dict[str, str]:
    """Return the variables of the sandbox's own processes, which programs in the sandbox can read."""
    return {"PATH": os.environ.get("PATH", os.defpath)}


def _root_options() -> list[str]:
    """Return the options of bubblewrap for every sandbox."""
    return [
        *("--proc", "/proc", "--dev", "/dev"),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
    ]


def _gpu_options(model: str) -> Iterator[str]:
    """Yield the options that make the GPUs of the machine and the libraries of its driver available.

    Raises:
        LoadFailed: the driver has no library for CUDA.
    """
    for device in sorted(Path("/dev").glob("nvidia*")):
        yield from ("--dev-bind", str(device), str(device))
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    cache = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    libraries = dict(_DRIVER_LIBRARY.findall(cache))
    if "libcuda.so.1" not in libraries:
        raise LoadFailed(
            f"model {model} cannot use the GPU: ldconfig -p does not list libcuda.so.1: install the driver"
        )
    for name, path in libraries.items():
        yield from ("--ro-bind", str(Path(path).resolve()), f"{DRIVER_FOLDER}/{name}")
    if (program := shutil.which("nvidia-smi")) is not None:
        yield from ("--ro-bind", program, NVIDIA_SMI)
