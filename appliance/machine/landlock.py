"""Keeps the code of models and builds from reading other processes' memory and environment, with Landlock.

All processes of the appliance run as one user, so the kernel would let each of them read
``/proc/PID/environ`` and ``/proc/PID/mem`` of all others. Those of the gateway and of Ray contain secrets. A
process in a Landlock domain can read these files only of processes in its own domain
(https://docs.kernel.org/userspace-api/landlock.html, "Ptrace restrictions"). The domain here forbids nothing
else that a model needs: from Linux 6.12 only signals to other processes, before that only mounts.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import Final

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on all processors
_VERSION: Final = 1  # flag of _CREATE_RULESET
_PATH_BENEATH: Final = 1  # type of rule
_MAKE_BLOCK, _REFER = 1 << 11, 1 << 13  # rights: create block devices; move files between folders
_SCOPE_SIGNAL: Final = 1 << 1
_PR_SET_NO_NEW_PRIVS: Final = 38
#: CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_PERFMON, which root has. The last two permit to read the environment
#: of any process, whatever Landlock says (``may_access_mm`` in kernel/fork.c).
_CAPABILITIES: Final = (19, 21, 38)
_CAPABILITY_VERSION: Final = 0x20080522
_SCOPED: Final = 6  # version with _SCOPE_SIGNAL, of Linux 6.12
#: Version with _REFER, of Linux 5.19. Version 1 forbids all moves of files between folders.
_OLDEST: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Return whether the kernel has Landlock, in a version that this module can use."""
    return _version() >= _OLDEST


def restrict() -> bool:
    """Move the calling thread, and all that it starts, into a domain; return False if that is not possible.

    Call this before other threads run, because they are not moved.
    """
    version = _version()
    if version < _OLDEST:
        return False
    try:
        ruleset = _scoped() if version >= _SCOPED else _permissive()
        try:
            _drop_capabilities()
            _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
        finally:
            os.close(ruleset)
    except OSError:
        return False
    return True


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)  # effective, permitted and inheritable ones, 0 to 31 and 32 to 63
    _check(_libc.capget(header, data))
    sets = list(struct.unpack("=6I", data.raw))
    for number in _CAPABILITIES:
        word, bit = divmod(number, 32)
        for index in range(3 * word, 3 * word + 3):
            sets[index] &= ~(1 << bit)
    _check(_libc.capset(header, struct.pack("=6I", *sets)))


def _version() -> int:
    """Return the version of the kernel's Landlock, from 1; at most 0 if it has none or it is off."""
    return int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION))


def _scoped() -> int:
    """Return the descriptor of a ruleset that forbids signals to processes outside of the domain."""
    attributes = struct.pack("=QQQ", 0, 0, _SCOPE_SIGNAL)
    return _check(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))


def _permissive() -> int:
    """Return the descriptor of a ruleset that permits, in all folders, the rights that it governs."""
    rights = _MAKE_BLOCK | _REFER
    attributes = struct.pack("=Q", rights)
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, root)
        _check(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    except OSError:
        os.close(ruleset)
        raise
    finally:
        os.close(root)
    return ruleset


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def launcher(variables: int) -> list[str]:
    """Return the beginning of a command line that runs the rest of the line in a domain, if that is possible.

    ``variables`` is the descriptor that the module describes; the new process must inherit it.
    """
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(variables)]


def _main(variables: int, command: list[str]) -> None:
    with open(variables, encoding="utf-8") as file:
        environment = json.load(file)
    restrict()
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606  # a shell is not wanted
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
