"""Input files whose URLs are lines of a text."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.config import FilesConfig
from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.domain.prediction import Prediction
from appliance.domain.values import MIB
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.runners.echo.runner import EchoRunner
from appliance.runners.transformers.runner import TransformersRunner
from appliance.store import Store
from tests.support.web_server import Answer, serving

INTERFACE = TransformersRunner.interface({"task": "image-text-embeddings"})


def record(**input: Any) -> Prediction:
    return Prediction(
        id="p", model="test/clip", version="0" * 64, owner="me", input=input, created_at=0.0, stream_token="s"
    )


async def fetched(store: Store, folder: Path, inputs: Any) -> Any:
    """Return the value that the runner gets for the input ``inputs``."""
    files = FileStore(store.files, folder / "files", FilesConfig())
    asked = {"inputs": inputs}
    complete = input_schema.validate(INTERFACE, asked)
    fetcher = Inputs(files, FetchGuard(["127.0.0.0/8"]), folder / "inputs", folder)
    return (await fetcher.fetch(record(**asked), INTERFACE, complete))["inputs"]


async def test_lines_that_are_urls_become_files_and_others_stay_texts(store: Store, tmp_path: Path) -> None:
    with serving() as web:
        web.answers["/cat.png"] = Answer(b"a cat")
        url = f"{web.url}/cat.png"
        for given in (f"\n a photo \n\n{url}\n/etc/passwd\n", ["a photo", url, "/etc/passwd"]):
            text, picture, path = await fetched(store, tmp_path, given)
            assert text == {"text": "a photo"}
            assert picture["text"] == url
            assert Path(picture["file"]).read_bytes() == b"a cat"
            assert path == {"text": "/etc/passwd"}, "only the gateway says which files the model opens"
    with pytest.raises(InvalidInput, match=r"inputs\.0"):
        await fetched(store, tmp_path, [{"text": "x", "file": "/etc/passwd"}])


async def test_the_error_names_the_line(store: Store, tmp_path: Path) -> None:
    with serving() as web:
        web.answers["/gone.png"] = Answer(b"", status=404)
        with pytest.raises(
            PredictionFailed, match=r"^input\.inputs, line 3: .*/gone\.png cannot be fetched: HTTP 404"
        ):
            await fetched(store, tmp_path, f"a text\n\n{web.url}/gone.png")


async def test_a_file_is_fetched_once_even_after_a_restart(store: Store, tmp_path: Path) -> None:
    with serving() as web:
        web.answers["/cat.png"] = Answer(b"a cat")
        url = f"{web.url}/cat.png"
        (before,) = await fetched(store, tmp_path, url)
        web.answers["/cat.png"] = Answer(b"", status=410)  # the URL has expired
        (after,) = await fetched(store, tmp_path, url)
        assert after == before
        assert Path(after["file"]).read_bytes() == b"a cat"


async def test_a_data_url_that_is_written_after_the_cancel_leaves_no_file(
    store: Store, tmp_path: Path
) -> None:
    inputs = Inputs(
        FileStore(store.files, tmp_path / "files", FilesConfig()),
        FetchGuard([]),
        tmp_path / "inputs",
        tmp_path,
    )
    url = f"data:text/plain;base64,{base64.b64encode(bytes(20 * MIB)).decode()}"
    interface = EchoRunner.interface({})
    folder = tmp_path / "inputs" / "p"
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor()
    loop.set_default_executor(threads)
    fetch = asyncio.ensure_future(inputs.fetch(record(file=url), interface, {"file": url}))
    while not list(folder.glob("fetched/file")):
        await asyncio.sleep(0)
    fetch.cancel()
    await asyncio.wait({fetch})
    await inputs.discard("p")
    loop.set_default_executor(ThreadPoolExecutor())
    threads.shutdown()  # waits for the thread that writes the file
    assert not folder.exists()


async def test_only_the_files_of_these_predictions_are_kept(store: Store, tmp_path: Path) -> None:
    inputs = Inputs(
        FileStore(store.files, tmp_path / "files", FilesConfig()),
        FetchGuard([]),
        tmp_path / "inputs",
        tmp_path,
    )
    await inputs.keep_only({"a"})  # there is no folder yet
    for id in ("a", "b"):
        (tmp_path / "inputs" / id / "fetched" / "file").mkdir(parents=True)
    await inputs.keep_only({"a", "c"})
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["a"]


async def test_a_file_that_was_not_complete_is_fetched_again(store: Store, tmp_path: Path) -> None:
    with serving() as web:
        web.answers["/cat.png"] = Answer(b"", status=503)
        url = f"{web.url}/cat.png"
        with pytest.raises(PredictionFailed, match="HTTP 503"):
            await fetched(store, tmp_path, url)
        (unfinished,) = tmp_path.glob("inputs/p/fetched/inputs/.1")
        (unfinished / "cat.png").write_bytes(b"a c")  # the gateway died during the download
        web.answers["/cat.png"] = Answer(b"a cat")
        (line,) = await fetched(store, tmp_path, url)
        assert Path(line["file"]).read_bytes() == b"a cat"
        assert not unfinished.exists()
