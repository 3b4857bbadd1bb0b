"""What Cog's worker process does for the engine host: its text and its files go there directly.

Copied into a project's own environment; nothing of the appliance is imported here. ``cog_shims`` calls
``install`` when the worker imports ``cog``, which is before the project is loaded.
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

#: Descriptors of pipes to the engine host: one for text as it is written, and one for ``_Labelled`` text, if
#: several predictions run at a time.
TEXT = "APPLIANCE_COG_TEXT"
#: Folder for output files; a text in the output that begins with it and a slash is one of them.
FILES = "APPLIANCE_COG_FILES"
#: Cog's own variable for the prediction that a task belongs to; it has no public name.
_PREDICTION = "_coglet_prediction_id"
#: Characters in one labelled piece. As JSON it is shorter than PIPE_BUF, so pieces of several threads and
#: processes do not mix.
_PIECE = 250
_HANDLERS = ("run", "predict", "train")
_numbers = itertools.count()


def install(cog: Any) -> None:
    """Send text and files to the engine host, if this is Cog's worker and a host has started it."""
    import coglet  # type: ignore[import-not-found]  # it is in the project's environment only

    if not coglet.server.active or TEXT not in os.environ:
        return
    # Programs that the project starts are none of Cog's workers.
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
    """A text stream that keeps nothing back, so that its text is in order with that of child processes."""
    raw: Any = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


class _Labelled(io.TextIOBase):
    """Writes lines of JSON: the id of the prediction that the calling task belongs to, and its text."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, labelled: int, descriptor: int) -> None:
        self._labelled = labelled
        self._descriptor = descriptor
        self.buffer = io.FileIO(descriptor, "w", closefd=False)  # bytes cannot be labelled

    def write(self, text: str, /) -> int:
        """Part of ``TextIOBase``."""
        context = contextvars.copy_context()
        id = next((value for variable, value in context.items() if variable.name == _PREDICTION), None)
        for at in range(0, len(text), _PIECE):
            line = json.dumps([id, text[at : at + _PIECE]])
            os.write(self._labelled, f"{line}\n".encode())
        return len(text)

    def fileno(self) -> int:
        """For programs that are started with it."""
        return self._descriptor

    def writable(self) -> bool:
        """Part of ``TextIOBase``."""
        return True


def _take_over_files(cog: Any, folder: Path) -> None:
    """Have handlers return paths in ``folder`` for files, and errors for calls of ``sys.exit``."""
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
    """``function`` with every file in what it gives replaced by a path in ``folder``."""
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
    """Put defaults in place of Cog's ``Input``s, as Cog does to the function that it calls."""
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
    """Turn ``sys.exit``, whose exception says no more than a number, into an error with words."""
    try:
        yield
    except SystemExit as error:
        status = "" if error.code is None else repr(error.code)
        raise RuntimeError(f"{name} called sys.exit({status})") from error


def _kept(value: Any, folder: Path) -> Any:
    """``value`` with a path in ``folder`` for every file, at any depth; Cog makes JSON of the rest."""
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
    """A copy: the project may write to the same path for its next output, or want to keep the file."""
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
    """A path with this name that nothing has; the name as text that JSON can hold."""
    place = folder / str(next(_numbers)) / (name.encode(errors="replace").decode() or "output")
    place.parent.mkdir(parents=True)
    return place
