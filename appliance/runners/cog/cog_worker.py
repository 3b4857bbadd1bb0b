"""Code for Cog's worker process that sends its text and its output files directly to the engine host.

This module is copied into a project's environment and imports nothing from the appliance. ``cog_shims`` calls
``install`` when the worker imports ``cog``, before the project is loaded.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Environment variable with the descriptors of pipes to the engine host: one for plain text, and one for
#: ``_Labelled`` text if several predictions run at the same time.
TEXT = "APPLIANCE_COG_TEXT"
#: Environment variable with the folder for output files. A string in the output that begins with this folder
#: and a slash is the path of an output file.
FILES = "APPLIANCE_COG_FILES"
#: Cog's context variable with the prediction of the current task; Cog has no public name for it.
_PREDICTION = "_coglet_prediction_id"
#: Characters in one labelled piece. Its JSON is shorter than PIPE_BUF, so that writes of several threads and
#: processes are not interleaved.
_PIECE = 250
_HANDLERS = ("run", "predict", "train")
_numbers = itertools.count()


def install(cog: Any) -> None:
    """Send text and files to the engine host, if this is Cog's worker and an engine host started it."""
    import coglet  # type: ignore[import-not-found]  # it is in the project's environment only

    if not coglet.server.active or TEXT not in os.environ:
        return
    # Removed from the environment, because programs that the project starts are not Cog's workers.
    _take_over_text(*map(int, os.environ.pop(TEXT).split(",")))
    _take_over_files(cog, Path(os.environ.pop(FILES)))


def _take_over_text(raw: int, labelled: int | None = None) -> None:
    for stream in (1, 2):
        os.dup2(raw, stream)
    os.close(raw)
    if labelled is not None:
        os.set_inheritable(labelled, False)
        sys.stdout, sys.stderr = _Labelled(labelled, 1), _Labelled(labelled, 2)
    else:
        sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)


def _unbuffered(descriptor: int) -> io.TextIOWrapper:
    """An unbuffered text stream, so that its text keeps its order relative to text of child processes."""
    raw: Any = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


class _Labelled(io.TextIOBase):
    """Writes lines of JSON: the id of the calling task's prediction, and the text."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, labelled: int, descriptor: int) -> None:
        self._labelled = labelled
        self._descriptor = descriptor
        self.buffer = io.FileIO(descriptor, "w", closefd=False)  # raw bytes, which cannot be labelled

    def write(self, text: str, /) -> int:
        """Part of ``TextIOBase``."""
        context = contextvars.copy_context()
        id = next((value for variable, value in context.items() if variable.name == _PREDICTION), None)
        for at in range(0, len(text), _PIECE):
            line = json.dumps([id, text[at : at + _PIECE]])
            os.write(self._labelled, f"{line}\n".encode())
        return len(text)

    def fileno(self) -> int:
        """Descriptor for child processes that get this stream."""
        return self._descriptor

    def writable(self) -> bool:
        """Part of ``TextIOBase``."""
        return True


def _take_over_files(cog: Any, folder: Path) -> None:
    """Patch Cog so that handlers return paths in ``folder`` for files, and raise errors for ``sys.exit``."""
    from cog import predictor  # type: ignore[import-not-found]  # it is in the project's environment only

    load = predictor.load_predictor_from_ref

    @functools.wraps(load)
    def loaded(ref: str) -> Any:
        with _no_exit(f"loading {ref}"):
            handler = load(ref)
        if inspect.isfunction(handler):
            return _wrapped(cog, handler, folder)
        kind = type(handler)
        for name in _HANDLERS:
            method = inspect.getattr_static(kind, name, None)
            if inspect.isfunction(method) and method.__module__ != predictor.__name__:
                setattr(kind, name, _wrapped(cog, method, folder))
        setup = inspect.getattr_static(kind, "setup", None)
        if inspect.isfunction(setup):
            kind.setup = _without_exit(setup, "setup()")
        return handler

    predictor.load_predictor_from_ref = loaded


def _wrapped(cog: Any, function: Any, folder: Path) -> Any:
    """``function``, with each file in its output replaced by a path in ``folder``."""
    _unwrap_defaults(cog, function)
    calling = "the prediction's code"

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generating(*arguments: Any, **options: Any) -> Any:
            with _no_exit(calling):
                async with contextlib.aclosing(function(*arguments, **options)) as items:
                    async for item in items:
                        yield _kept(item, folder)

        return generating
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaiting(*arguments: Any, **options: Any) -> Any:
            with _no_exit(calling):
                return _given(await function(*arguments, **options), folder)

        return awaiting

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        with _no_exit(calling):
            return _given(function(*arguments, **options), folder)

    return wrapper


def _given(output: Any, folder: Path) -> Any:
    if inspect.isasyncgen(output):
        return output
    return _items(output, folder) if inspect.isgenerator(output) else _kept(output, folder)


def _items(items: Any, folder: Path) -> Iterator[Any]:
    with _no_exit("the prediction's code"), contextlib.closing(items):
        for item in items:
            yield _kept(item, folder)


def _unwrap_defaults(cog: Any, function: Any) -> None:
    """Replace Cog's ``Input`` defaults by plain values, as Cog does for the function that it calls."""
    from cog.input import FieldInfo  # type: ignore[import-not-found]  # as above

    def plain(value: Any) -> Any:
        return value.default if isinstance(value, FieldInfo) else value

    inner = inspect.unwrap(function)
    if inner.__defaults__:
        inner.__defaults__ = tuple(map(plain, inner.__defaults__))
    if inner.__kwdefaults__:
        inner.__kwdefaults__ = {name: plain(value) for name, value in inner.__kwdefaults__.items()}


def _without_exit(function: Any, name: str) -> Any:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaiting(*arguments: Any, **options: Any) -> Any:
            with _no_exit(name):
                return await function(*arguments, **options)

        return awaiting

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        with _no_exit(name):
            return function(*arguments, **options)

    return wrapper


@contextlib.contextmanager
def _no_exit(name: str) -> Iterator[None]:
    """Raise an error with a message for ``sys.exit``, whose exception has only a number."""
    try:
        yield
    except SystemExit as error:
        status = "" if error.code is None else repr(error.code)
        raise RuntimeError(f"{name} called sys.exit({status})") from error


def _kept(value: Any, folder: Path) -> Any:
    """``value`` with each file, at any depth, replaced by a path in ``folder``; Cog encodes the rest."""
    kind = type(value)
    if kind in (str, int, float, bool, bytes, type(None)) or isinstance(value, type):
        return value
    if isinstance(value, os.PathLike):
        return _copied(os.fspath(value), folder)
    if isinstance(value, io.IOBase):
        return _written(value, folder)
    for dump in ("model_dump", "dict"):  # Pydantic's, 2 and 1
        method: Callable[[], Any] | None = getattr(value, dump, None)
        if callable(method):
            return _kept(method(), folder)
    if dataclasses.is_dataclass(value):
        return {field.name: _kept(getattr(value, field.name), folder) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _kept(part, folder) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) or inspect.isgenerator(value):
        return [_kept(part, folder) for part in value]
    return value


def _copied(path: Any, folder: Path) -> str:
    """Copy a file, because the project may reuse its path for the next output, or keep the file."""
    place = _place(Path(os.fsdecode(path)).name, folder)
    shutil.copyfile(path, place)
    return str(place)


def _written(file: Any, folder: Path) -> str:
    if file.seekable():
        file.seek(0)
    content = file.read()
    name = getattr(file, "name", None)
    place = _place(Path(name).name if isinstance(name, str) else "output.bin", folder)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(place)


def _place(name: str, folder: Path) -> Path:
    """A new path with this name; characters that JSON cannot hold are replaced."""
    place = folder / str(next(_numbers)) / (name.encode(errors="replace").decode() or "output")
    place.parent.mkdir(parents=True)
    return place
