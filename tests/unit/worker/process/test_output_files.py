"""Output files keep safe names and get the media types of these names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.domain.file import OutputFile
from appliance.domain.prediction import Job, Output
from appliance.worker.process import output_files


async def taken(tmp_path: Path, *paths: Path, inline: int = -1) -> list[Any]:
    job = Job("id", 1, {}, folder=str(tmp_path / "outputs"), inline=inline)
    (files,) = (await output_files.take_over(job, Output([list(paths)], append=False))).values
    return list(files)


def made(folder: Path, name: str, content: str = "content") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize(
    ("name", "kept", "media_type"),
    [
        ("weights.safetensors", "weights.safetensors", "application/octet-stream"),
        ("subs.srt", "subs.srt", "text/plain"),
        ("clip.m4a", "clip.m4a", "audio/mp4"),
        ("model.ply", "model.ply", "application/octet-stream"),
        ("a.tar.gz", "a.tar.gz", "application/gzip"),
        ("a.json.bz2", "a.json.bz2", "application/x-bzip2"),
        ("picture.WEBP", "picture.WEBP", "image/webp"),
        ("a b/c?.png".replace("/", "#"), "a-b-c.png", "image/png"),
        ("снимок.png", "output.png", "image/png"),
        (".hidden", "hidden", "application/octet-stream"),
        ("x" * 200 + ".wav", "x" * 100 + ".wav", "audio/wav"),
    ],
)
async def test_a_file_keeps_its_name_and_type(tmp_path: Path, name: str, kept: str, media_type: str) -> None:
    (file,) = await taken(tmp_path, made(tmp_path / "made", name))
    assert isinstance(file, OutputFile)
    assert (file.name, file.content_type) == (kept, media_type)
    assert Path(file.path).name == kept


async def test_files_with_the_same_name_are_all_kept(tmp_path: Path) -> None:
    paths = [made(tmp_path / str(number), "a.tar.gz", f"content {number}") for number in range(3)]
    files = await taken(tmp_path, *paths)
    assert [file.name for file in files] == ["a.tar.gz", "a-2.tar.gz", "a-3.tar.gz"]
    assert [Path(file.path).read_text() for file in files] == ["content 0", "content 1", "content 2"]


async def test_folders_with_the_same_name_are_all_kept(tmp_path: Path) -> None:
    for number in range(2):
        made(tmp_path / str(number) / "results", "a.txt", "x" * number * 100)
    files = await taken(tmp_path, *(tmp_path / str(number) / "results" for number in range(2)))
    assert [file.name for file in files] == ["results.zip", "results-2.zip"]
    assert {file.content_type for file in files} == {"application/zip"}
    assert files[0].sha256 != files[1].sha256


async def test_a_small_file_in_a_data_url_has_its_type(tmp_path: Path) -> None:
    assert await taken(tmp_path, made(tmp_path / "made", "a.gz"), inline=100) == [
        "data:application/gzip;base64,Y29udGVudA=="
    ]
