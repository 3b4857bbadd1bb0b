"""The example programs run, and send exactly the input of the form."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.ui import snippets
from appliance.ui.output import RenderedOutput
from appliance.ui.snippets import ExampleCall, LocalFile

HOSTILE = {
    "prompt": 'quotes " \' and \\ back\nlines\u2028 $(id) `id` $HOME ${x}\nEND-OF-INPUT\n"""\x7f é 🦀',
    "'": "a key",
    "numbers": [1, 2.5, True, None],
    "deep": {"a": ["$FILE1", {}]},
}


def call(
    input: dict[str, Any], output: RenderedOutput = RenderedOutput.TEXT, kind: str | None = "vllm"
) -> ExampleCall:
    return ExampleCall(
        model="test/echo", kind=kind, base_url="http://127.0.0.1:1", input=input, output=output
    )


@pytest.mark.parametrize("output", list(RenderedOutput))
def test_python_asks_for_what_the_form_holds(
    output: RenderedOutput, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "cat's.png").write_bytes(b"cat")
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    class Replicate:
        @staticmethod
        def run(model: str, input: dict[str, Any]) -> list[str]:
            asked.append((model, input))
            return ["a"]

    code = snippets.python(call({**HOSTILE, "image": LocalFile("/tmp/x/cat's.png")}, output))
    assert "<your token>" in code
    exec(code.replace("import replicate", ""), {"replicate": Replicate})
    ((model, given),) = asked
    image = given.pop("image")
    assert (model, given, image.read()) == ("test/echo", HOSTILE, b"cat")
    image.close()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js")
@pytest.mark.parametrize("output", [RenderedOutput.TEXT, RenderedOutput.FILES])
def test_javascript_asks_for_what_the_form_holds(output: RenderedOutput, tmp_path: Path) -> None:
    (tmp_path / "cat's.png").write_bytes(b"cat")
    code = snippets.javascript(call({**HOSTILE, "image": LocalFile("/tmp/x/cat's.png")}, output))
    client = (
        "class Replicate {\n"
        "  run(model, { input }) { input.image = `${input.image}`; return { model, input }; }\n"
        "  async *stream(model, options) {\n"
        "    yield { event: 'output', data: JSON.stringify(this.run(model, options)) };\n"
        "  }\n}\n"
    )
    code = code.replace('import Replicate from "replicate";', client)
    if output is RenderedOutput.FILES:
        code = code.replace("console.log(await", "console.log(JSON.stringify(await").replace("));", ")));")
    (tmp_path / "call.mjs").write_text(code)
    ran = subprocess.run(["node", "call.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"model": "test/echo", "input": {**HOSTILE, "image": "cat"}}


def test_curl_uploads_the_files_and_asks_for_what_the_form_holds(tmp_path: Path) -> None:
    (tmp_path / "cat's.png").write_bytes(b"cat")
    fake = tmp_path / "curl"
    fake.write_text(
        "#!/bin/sh\nfor argument; do case $argument in\n"
        'content=@*) test -f "${argument#content=@}" || exit 1\n'
        '  echo \'{"id": "1", "urls": {"get": "http://127.0.0.1:1/v1/files/1"}}\'; exit;;\n'
        "@-) cat; exit;;\nesac; done\n"
    )
    fake.chmod(0o755)
    code = snippets.curl(call({**HOSTILE, "image": LocalFile("/tmp/x/cat's.png")}))
    ran = subprocess.run(
        ["/bin/sh"],
        input=code,
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {"input": {**HOSTILE, "image": "http://127.0.0.1:1/v1/files/1"}}


@pytest.mark.parametrize(
    ("kind", "input", "path"),
    [
        (
            "vllm",
            {"prompt": 'a"b', "system_prompt": "s", "max_tokens": 5, "top_k": 1},
            "chat.completions.create",
        ),
        ("embeddings", {"texts": '["a"]'}, "embeddings.create"),
        ("diffusers", {"prompt": "a", "width": 64, "height": 32, "num_outputs": 2}, "images.generate"),
        ("whisper", {"audio": LocalFile("/x/a.wav")}, "audio.transcriptions.create"),
        ("piper", {"text": "a", "voice": "b"}, "audio.speech.create"),
        ("kokoro", {"text": "a", "voice": "b"}, "audio.speech.create"),
    ],
)
def test_kinds_that_openais_api_knows_have_its_words(kind: str, input: dict[str, Any], path: str) -> None:
    code = snippets.openai(call(input, kind=kind))
    assert code is not None
    compile(code, "snippet", "exec")
    assert f"client.{path}(" in code
    assert '"http://127.0.0.1:1/openai/v1"' in code
    if kind == "vllm":
        assert '{\n        "role": "system",\n        "content": "s",\n    }' in code
        assert "max_tokens=5" in code
        assert "top_k" not in code
    if kind == "diffusers":
        assert 'size="64x32"' in code
        assert "n=2" in code


def test_a_version_is_called_by_its_id() -> None:
    of_version = msgspec.structs.replace(call({"text": "x"}), model=f"test/echo:{'0' * 64}")
    for made in (snippets.python, snippets.javascript, snippets.openai):
        assert f'"test/echo:{"0" * 64}"' in str(made(of_version))
    said = snippets.curl(of_version)
    assert " http://127.0.0.1:1/v1/predictions " in said
    assert f'"version": "test/echo:{"0" * 64}"' in said


def test_other_kinds_have_none() -> None:
    assert snippets.openai(call({}, kind="echo")) is None
    assert snippets.openai(call({}, kind=None)) is None
