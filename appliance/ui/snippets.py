"""Example programs that call a model with the values of the form. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.ui.output import RenderedOutput

#: Marks names of shell variables while the rest of the text is escaped; no input contains it.
_MARK: Final = "\ue000\ue0ff"
#: Inputs of language models that have the same name in OpenAI's API.
_OPENAI_NAMES: Final = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")


class LocalFile(msgspec.Struct, frozen=True):
    """A file that the user has uploaded in the form, and has on their machine."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


class ExampleCall(msgspec.Struct, frozen=True, kw_only=True):
    """The call that all example programs make."""

    model: str  # owner/name, or owner/name:version
    kind: str | None
    origin: str
    input: Mapping[str, Any]  # files are of type LocalFile
    output: RenderedOutput


def python(call: ExampleCall) -> str:
    """Return a program with Replicate's client for Python."""
    shown = {
        RenderedOutput.TEXT: 'for part in output:\n    print(part, end="", flush=True)',
        RenderedOutput.FILES: (
            "for file in output if isinstance(output, list) else [output]:\n    print(file)"
        ),
        RenderedOutput.DATA: "print(output)",
    }[call.output]
    return (
        "# pip install replicate\n"
        f"# export REPLICATE_BASE_URL={call.origin} REPLICATE_API_TOKEN=<your token>\n"
        "import replicate\n\n"
        f"output = replicate.run(\n    {_python(call.model)},\n    input={_python(call.input, 4)},\n)\n"
        f"{shown}\n"
    )


def javascript(call: ExampleCall) -> str:
    """Return a program with Replicate's client for JavaScript."""
    files = any(isinstance(value, LocalFile) for value in _values(call.input))
    reading = 'import { readFile } from "node:fs/promises";\n' if files else ""
    given = _javascript(call.input)
    if call.output is RenderedOutput.TEXT:
        use = (
            f"for await (const event of replicate.stream({json.dumps(call.model)}, {{ input }})) {{\n"
            '  if (event.event === "output") process.stdout.write(event.data);\n}\n'
        )
    else:
        use = f"console.log(await replicate.run({json.dumps(call.model)}, {{ input }}));\n"
    return (
        "// npm install replicate; save as call.mjs\n"
        f"// export REPLICATE_API_TOKEN=<your token>\n{reading}"
        'import Replicate from "replicate";\n\n'
        "const replicate = new Replicate({\n  auth: process.env.REPLICATE_API_TOKEN,\n"
        f"  baseUrl: {json.dumps(call.origin + '/v1')},\n}});\n"
        f"const input = {given};\n{use}"
    )


def curl(call: ExampleCall) -> str:
    """Return a shell script with curl, which uploads the files first."""
    lines = ["# export REPLICATE_API_TOKEN=<your token>"]
    names: dict[LocalFile, str] = {}
    for file in _values(call.input):
        if isinstance(file, LocalFile) and file not in names:
            names[file] = f"FILE{len(names) + 1}"
            lines.append(
                f"{names[file]}=$(curl --silent --fail-with-body {call.origin}/v1/files \\\n"
                '  --header "Authorization: Bearer $REPLICATE_API_TOKEN" \\\n'
                f"  --form {_shell('content=@' + file.name)}"
                " | grep -o 'http[^\"]*/v1/files/[^\"]*' | head -n 1)"
            )
    _, version, _ = call.model.partition(":")
    path = "predictions" if version else f"models/{call.model}/predictions"
    asked = {"version": call.model} if version else {}
    body = json.dumps({**asked, "input": _named(call.input, names)}, indent=2, ensure_ascii=False)
    # In a here-document only these three characters are special to the shell.
    body = re.sub(r"[\\$`]", r"\\\g<0>", body)
    for variable in names.values():
        body = body.replace(f"{_MARK}{variable}", f"${variable}")
    return "\n".join(
        [
            *lines,
            f"curl --silent --fail-with-body {call.origin}/v1/{path} \\",
            '  --header "Authorization: Bearer $REPLICATE_API_TOKEN" \\',
            '  --header "Content-Type: application/json" \\',
            '  --header "Prefer: wait" \\',
            f"  --data @- <<END-OF-INPUT\n{body}\nEND-OF-INPUT\n",
        ]
    )


def openai(call: ExampleCall) -> str | None:
    """Return a program with OpenAI's client for Python; None if its API has no such kind of model."""
    made = _OPENAI.get(call.kind or "")
    if made is None:
        return None
    return (
        "# pip install openai\n# export OPENAI_API_KEY=<your token>\n"
        "from openai import OpenAI\n\n"
        f"client = OpenAI(base_url={_python(call.origin + '/openai/v1')})\n{made(call)}"
    )


def _chat(call: ExampleCall) -> str:
    input = dict(call.input)
    messages = [{"role": "user", "content": input.get("prompt", "")}]
    if input.get("system_prompt"):
        messages.insert(0, {"role": "system", "content": input["system_prompt"]})
    more = "".join(f"    {name}={_python(input[name])},\n" for name in _OPENAI_NAMES if name in input)
    return (
        f"stream = client.chat.completions.create(\n    model={_python(call.model)},\n"
        f"    messages={_python(messages, 4)},\n{more}    stream=True,\n)\n"
        'for chunk in stream:\n    print(chunk.choices[0].delta.content or "", end="", flush=True)\n'
    )


def _embeddings(call: ExampleCall) -> str:
    given = call.input.get("texts", call.input.get("text", ""))
    return (
        f"answer = client.embeddings.create(model={_python(call.model)}, input={_python(given)})\n"
        "print(len(answer.data), len(answer.data[0].embedding))\n"
    )


def _images(call: ExampleCall) -> str:
    input = call.input
    more = f"    n={input['num_outputs']},\n" if "num_outputs" in input else ""
    if "width" in input and "height" in input:
        more += f'    size="{input["width"]}x{input["height"]}",\n'
    return (
        f"answer = client.images.generate(\n    model={_python(call.model)},\n"
        f"    prompt={_python(input.get('prompt', ''))},\n{more})\n"
        "for image in answer.data:\n    print(image.url)\n"
    )


def _transcriptions(call: ExampleCall) -> str:
    audio = call.input.get("audio")
    name = audio.name if isinstance(audio, LocalFile) else "speech.wav"
    return (
        f"with open({_python(name)}, 'rb') as file:\n"
        f"    answer = client.audio.transcriptions.create(model={_python(call.model)}, file=file)\n"
        "print(answer.text)\n"
    )


def _speech(call: ExampleCall) -> str:
    return (
        f"answer = client.audio.speech.create(\n    model={_python(call.model)},\n"
        f"    voice={_python(call.input.get('voice', 'alloy'))},\n"
        f"    input={_python(call.input.get('text', ''))},\n    response_format='wav',\n)\n"
        "answer.write_to_file('speech.wav')\n"
    )


_OPENAI: Final = {
    "vllm": _chat,
    "embeddings": _embeddings,
    "diffusers": _images,
    "whisper": _transcriptions,
    "piper": _speech,
}


def _values(value: Any) -> list[Any]:
    match value:
        case Mapping():
            return [part for each in value.values() for part in _values(each)]
        case list() | tuple():
            return [part for each in value for part in _values(each)]
    return [value]


def _python(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 4)
    match value:
        case LocalFile():
            return f'open({_python(value.name)}, "rb")'
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f")
        case Mapping() if value:
            rows = "".join(
                f"{inner}{_python(str(key))}: {_python(part, indent + 4)},\n" for key, part in value.items()
            )
            return f"{{\n{rows}{' ' * indent}}}"
        case list() | tuple() if value:
            return f"[{', '.join(_python(part, indent) for part in value)}]"
    return repr(value)


def _javascript(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 2)
    match value:
        case LocalFile():
            return f"await readFile({json.dumps(value.name)})"
        case Mapping() if value:
            rows = "".join(
                f"{inner}{json.dumps(key)}: {_javascript(part, indent + 2)},\n" for key, part in value.items()
            )
            return f"{{\n{rows}{' ' * indent}}}"
        case list() | tuple():
            return f"[{', '.join(_javascript(part, indent) for part in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _named(value: Any, names: Mapping[LocalFile, str]) -> Any:
    """Return ``value`` with marked shell variables in place of files."""
    match value:
        case LocalFile():
            return f"{_MARK}{names[value]}"
        case Mapping():
            return {key: _named(part, names) for key, part in value.items()}
        case list() | tuple():
            return [_named(part, names) for part in value]
    return value


def _shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
