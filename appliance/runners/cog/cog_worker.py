"""Sends the text and the output files of Cog's worker directly to the worker process of the appliance.

This module is copied into a project's environment and imports nothing from the appliance. ``cog_shims`` calls
``install`` when Cog's worker imports ``cog``, before the project is loaded.
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

#: Environment variable with the file descriptors of one or two pipes: for plain text and, if several
#: predictions run at the same time, for the text that ``_Labelled`` writes.
TEXT = "APPLIANCE_COG_TEXT"
#: Environment variable with the folder for output files. Every string in an output that begins with this
#: folder and a slash is the path of an output file.
FILES = "APPLIANCE_COG_FILES"
#: Cog's context variable with the prediction of the current task; Cog has no public name for it.
_PREDICTION = "_coglet_prediction_id"
#: Characters in one line of labelled text. Its JSON is shorter than PIPE_BUF, so that lines of several
#: threads and processes are not interleaved.
_PIECE = 250
_HANDLERS = ("run", "predict", "train")
_numbers = itertools.count()


def install() -> None:
    """Redirect text and output files, if this is Cog's worker and the appliance started it."""
    import coglet  # type: ignore[import-not-found]  # it is in the project's environment only

    if not coglet.server.active or TEXT not in os.environ:
        return
    # Removed from the environment, because programs that the project starts are not Cog's workers.
    _redirect_text(*map(int, os.environ.pop(TEXT).split(",")))
    _redirect_files(Path(os.environ.pop(FILES)))


def _redirect_text(plain: int, labelled: int | None = None) -> None:
    for stream in (1, 2):
        os.dup2(plain, stream)
    os.close(plain)
    if labelled is not None:
        os.set_inheritable(labelled, False)
        sys.stdout, sys.stderr = _Labelled(labelled, 1), _Labelled(labelled, 2)
    else:
        sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)


def _unbuffered(descriptor: int) -> io.TextIOWrapper:
    """Return an unbuffered text stream: its text keeps its place among the text of child processes."""
    raw: Any = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


class _Labelled(io.TextIOBase):
    """A text stream that writes lines of JSON: the id of the calling task's prediction, and the text."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, labelled: int, descriptor: int) -> None:
        self._labelled = labelled
        self._descriptor = descriptor
        self.buffer = io.FileIO(descriptor, "w", closefd=False)  # raw bytes, which cannot be labelled

    def write(self, text: str, /) -> int:
        context = contextvars.copy_context()
        id = next((value for variable, value in context.items() if variable.name == _PREDICTION), None)
        for at in range(0, len(text), _PIECE):
            line = json.dumps([id, text[at : at + _PIECE]])
            os.write(self._labelled, f"{line}\n".encode())
        return len(text)

    def fileno(self) -> int:
        return self._descriptor  # for child processes that get this stream

    def writable(self) -> bool:
        return True


def _redirect_files(folder: Path) -> None:
    """Patch Cog: handlers return a path in ``folder`` for each file, and raise an error for ``sys.exit``."""
    from cog import predictor  # type: ignore[import-not-found]  # it is in the project's environment only

    load = predictor.load_predictor_from_ref

    def guarded(function: Any) -> Any:
        _unwrap_defaults(function)
        return _guarded(function, "the prediction's code", functools.partial(_kept, folder=folder))

    @functools.wraps(load)
    def loaded(ref: str) -> Any:
        with _no_exit(f"loading {ref}"):
            handler = load(ref)
        if inspect.isfunction(handler):
            return guarded(handler)
        kind = type(handler)
        for name in _HANDLERS:
            method = inspect.getattr_static(kind, name, None)
            if inspect.isfunction(method) and method.__module__ != predictor.__name__:
                setattr(kind, name, guarded(method))
        setup = inspect.getattr_static(kind, "setup", None)
        if inspect.isfunction(setup):
            kind.setup = _guarded(setup, "setup()", lambda value: value)
        return handler

    predictor.load_predictor_from_ref = loaded


def _guarded(function: Any, name: str, convert: Callable[[Any], Any]) -> Any:
    """Return ``function``, with ``convert`` applied to each output and an error in place of ``sys.exit``."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generating(*arguments: Any, **options: Any) -> Any:
            with _no_exit(name):
                async with contextlib.aclosing(function(*arguments, **options)) as items:
                    async for item in items:
                        yield convert(item)

        return generating
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaiting(*arguments: Any, **options: Any) -> Any:
            with _no_exit(name):
                return _converted(await function(*arguments, **options), name, convert)

        return awaiting

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        with _no_exit(name):
            return _converted(function(*arguments, **options), name, convert)

    return wrapper


def _converted(output: Any, name: str, convert: Callable[[Any], Any]) -> Any:
    if inspect.isasyncgen(output):
        return output
    return _items(output, name, convert) if inspect.isgenerator(output) else convert(output)


def _items(items: Any, name: str, convert: Callable[[Any], Any]) -> Iterator[Any]:
    with _no_exit(name), contextlib.closing(items):
        for item in items:
            yield convert(item)


def _unwrap_defaults(function: Any) -> None:
    """Replace ``Input(default=...)`` in the defaults by the plain value.

    Cog does this only for the function that it calls, which is now the wrapper.
    """
    from cog.input import FieldInfo  # type: ignore[import-not-found]  # as above

    def plain(value: Any) -> Any:
        return value.default if isinstance(value, FieldInfo) else value

    inner = inspect.unwrap(function)
    if inner.__defaults__:
        inner.__defaults__ = tuple(map(plain, inner.__defaults__))
    if inner.__kwdefaults__:
        inner.__kwdefaults__ = {name: plain(value) for name, value in inner.__kwdefaults__.items()}


@contextlib.contextmanager
def _no_exit(name: str) -> Iterator[None]:
    """Raise an error with a message in place of ``SystemExit``, which has only a number."""
    try:
        yield
    except SystemExit as error:
        status = "" if error.code is None else repr(error.code)
        raise RuntimeError(f"{name} called sys.exit({status})") from error


def _kept(value: Any, folder: Path) -> Any:
    """Return ``value`` with each file, at any depth, replaced with a path in ``folder``."""
    kind = type(value)
    if kind in (str, int, float, bool, bytes, type(None)) or isinstance(value, type):
        return value
    if isinstance(value, os.PathLike):
        return _copied(os.fspath(value), folder)
    if isinstance(value, io.IOBase):
        return _written(value, folder)
    for dump in ("model_dump", "dict"):  # of Pydantic 2 and Pydantic 1
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
    """Copy an output file, because the project may overwrite the original, or need it again."""
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
    """Return a new path that ends in ``name``, without characters that JSON cannot encode."""
    place = folder / str(next(_numbers)) / (name.encode(errors="replace").decode() or "output")
    place.parent.mkdir(parents=True)
    return place
