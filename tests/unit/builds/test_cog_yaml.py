"""What the appliance reads in cog.yaml, what it notes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.builds import cog_yaml
from appliance.builds.cog_yaml import CogYaml
from appliance.domain.errors import WeightsError


def read(folder: Path, text: str, requirements: str = "") -> CogYaml:
    (folder / "cog.yaml").write_text(f"predict: predict.py:Predictor\n{text}")
    (folder / "requirements.txt").write_text(requirements)
    return cog_yaml.read("cog/local", folder)


@pytest.mark.parametrize(
    ("text", "requirements", "python", "cog"),
    [
        ("build: {python_version: '3.8'}", "", "3.8", "0.16.12"),
        ("build: {python_version: '3.9.18'}", "", "3.9.18", "0.16.12"),
        ("build: {python_version: 3.10}", "", "3.10", "0.23.1"),
        ("build: {python_version: 3.13}", "", "3.13", "0.23.1"),
        ("build: {python_version: '3.12', sdk_version: 0.16.8}", "", "3.12", "0.16.8"),
        ("build: {python_version: '3.8', python_packages: [cog==0.9.26]}", "", "3.8", "0.9.26"),
        (
            "build: {python_version: '3.8', python_requirements: requirements.txt}",
            "cog==0.8.6  # old\n",
            "3.8",
            "0.8.6",
        ),
    ],
)
def test_the_version_of_cog_is_the_one_that_the_project_needs(
    tmp_path: Path, text: str, requirements: str, python: str, cog: str
) -> None:
    found = read(tmp_path, text, requirements)
    assert (found.python, found.cog, found.notes) == (python, cog, ())
    assert found.requirements == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("build: {python_version: '3.7'}", "build.python_version 3.7 is not supported: choose 3.8 to 3.13"),
        ("build: {python_version: three}", "build.python_version three is not supported"),
        (
            "build: {python_version: '3.8', sdk_version: 0.20.0}",
            "sdk_version 0.20.0 needs Python 3.10 or later",
        ),
        ("build: {sdk_version: 0.7.2}", "build.sdk_version 0.7.2 is not supported: choose 0.8.0 or a later"),
        ("build: {python_requirements: more.txt}", "build.python_requirements: more.txt is missing"),
        ("build: {run: [1]}", r"build.run\[0\] should be text"),
        (
            "build: {run: [{command: x, mounts: [{type: secret}]}]}",
            r"build.run\[0\] needs a mount of type secret",
        ),
        ("build: {run: [--mount=type=ssh git clone x]}", r"build.run\[0\] needs a mount of type ssh"),
        ("build: {gpu: maybe}", "build.gpu should be true or false"),
        ("concurrency: {max: true}", "concurrency.max should be a whole number"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_that_names_the_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(WeightsError, match=f"cog/local: .*cog.yaml: .*{said}"):
        read(tmp_path, text)


def test_every_key_that_is_not_honoured_is_noted(tmp_path: Path) -> None:
    text = """
image: r8.im/example/it
weights: [{name: a, target: /src/a}]
typo: 1
build:
  cuda: "11.3"
  cudnn: "8"
  sdk_version: "0.20.0"
  pre_installs: []
  run:
    - --mount=type=cache,target=/cache --mount=type=cache,target=/more pip install x
    - {command: echo, mounts: [{type: cache, target: /third}]}
concurrency: {max: 2, default_target: 1}
"""
    found = read(tmp_path, text)
    assert sorted(note.partition(":")[0] for note in found.notes) == [
        "build.cuda",
        "build.cudnn",
        "build.pre_installs",
        "build.run[0]",
        "build.run[0]",
        "build.run[1]",
        "build.sdk_version 0.20.0",
        "concurrency.default_target",
        "image",
        "typo",
        "weights",
    ]
    assert [command.text for command in found.run] == ["pip install x", "echo"]
    assert found.cog == "0.23.1"


def test_options_behind_a_package_get_lines_of_their_own(tmp_path: Path) -> None:
    text = """
build:
  python_packages:
    - torch==1.11.0 --extra-index-url=https://download.pytorch.org/whl/cu113
    - torchvision==0.12.0 --extra-index-url=https://download.pytorch.org/whl/cu113
    - torch==2.0.1+cu118
    - -e ./inner
    - six==1.16.0 -f https://example.org/wheels
"""
    assert read(tmp_path, text).requirements == (
        "--extra-index-url https://download.pytorch.org/whl/cu113",
        "--extra-index-url https://download.pytorch.org/whl/cu118",
        "-f https://example.org/wheels",
        "torch==1.11.0",
        "torchvision==0.12.0",
        "torch==2.0.1+cu118",
        "-e ./inner",
        "six==1.16.0",
    )
