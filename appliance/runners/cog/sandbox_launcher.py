"""Program that runs a command in a sandbox of bubblewrap, and forwards connections into the sandbox.

The sandbox has namespaces of its own for users, processes and the network. Its root folder is an overlay: the
unpacked image, which stays unchanged, and above it a folder for everything that is written. The program needs
no root: it is root only in its own user namespace, where the owner of all files of the image is root too.

The first argument is the file descriptor of a socket to the worker process. The program receives a line of
JSON with the folders, sends a listening socket whose port only programs in the sandbox can reach, and
receives another line with the command. When the worker process closes the socket, or when the command ends,
everything in the sandbox is killed.

This module is run as a script, in isolated mode, and imports nothing from the appliance.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
CHUNK = 64 * 1024
#: Characters with a meaning in the options of an overlay, and what replaces them.
SPECIAL, BACKSLASH = r"[\\:,]", r"\\\g<0>"
_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The kernel refuses a part of the sandbox."""


def _check(result: int, action: str) -> None:
    if result != 0:
        raise SandboxError(f"{action}: {os.strerror(ctypes.get_errno())}")


def enter_namespaces() -> None:
    """Move this process into new user, mount and network namespaces, where it is root."""
    user, group = os.geteuid(), os.getegid()
    action = "this user cannot create user namespaces"
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET), action)
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", file).write_text(text)
    except OSError as error:
        raise SandboxError(f"{action}: {error.strerror}") from error
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mounts cannot be made private")
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        name, flags, rest = struct.unpack("16sH14s", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", name, flags | IFF_UP, rest))


def mount_root(image: str, scratch: str) -> str:
    """Mount the image with a writable layer in the folder ``scratch``; return the path of the mount."""
    written, work, root = (Path(scratch, name) for name in ("written", "work", "root"))
    for folder in (written, work, root):
        folder.mkdir()
    layers = {"lowerdir": image, "upperdir": written, "workdir": work}
    options = ",".join(f"{key}={re.sub(SPECIAL, BACKSLASH, str(path))}" for key, path in layers.items())
    _check(
        _libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, os.fsencode(f"{options},userxattr")),
        "the kernel cannot mount an overlay without root (Linux 5.11 can)",
    )
    # The kernel creates a folder that its owner cannot open, and thus not remove.
    (work / "work").chmod(0o700)
    return str(root)


def start(settings: dict[str, Any], root: str) -> subprocess.Popen[bytes]:
    """Start bubblewrap. Its options go through a pipe, because other users can read command lines."""
    options = ["--bind", root, "/", *settings["options"]]
    reader, writer = os.pipe()
    command = ["bwrap", "--args", str(reader), *settings["command"]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[reader])
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as pipe:
        pipe.write(b"".join(os.fsencode(option) + b"\0" for option in options))
    return process


async def forward(path: str, port: int) -> None:
    """Forward connections to the Unix socket ``path`` to a port of the sandbox."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # the command does not listen yet
            writer.close()
            return
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        for each in (inner_writer, writer):
            each.close()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    await asyncio.start_unix_server(connected, path)


async def serve(
    settings: dict[str, Any], control: socket.socket, process: subprocess.Popen[bytes]
) -> NoReturn:
    """Forward connections until the command ends; kill it when the worker process ends.

    This process exits with the status of the command.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(control, ended.set)  # the worker process sends nothing more, so this is its end
    await forward(settings["socket"], settings["port"])
    waiting = loop.run_in_executor(None, process.wait)
    waiting.add_done_callback(lambda _: ended.set())
    await ended.wait()
    process.kill()  # with it ends the first process of the sandbox, and with that all others
    status = await waiting
    os._exit(status if status >= 0 else 128 - status)  # without errors about connections that are cut off


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    with control.makefile("rb") as lines:
        place = json.loads(lines.readline())
        try:
            enter_namespaces()
            root = mount_root(place["image"], place["scratch"])
        except (SandboxError, OSError) as error:
            control.sendall(f"{error}\n".encode())
            sys.exit(1)
        listener = socket.create_server(("127.0.0.1", 0))
        socket.send_fds(control, [b"\n"], [listener.fileno()])
        listener.close()
        line = lines.readline()
    if not line:  # the worker process has ended
        sys.exit(1)
    settings = json.loads(line)
    asyncio.run(serve(settings, control, start(settings, root)))


if __name__ == "__main__":
    main()
