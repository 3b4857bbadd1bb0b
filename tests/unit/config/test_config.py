"""What models.yaml may say, and how it is refused: with the file, the line, the model and the key."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import config as configuration
from appliance.config import (
    Config,
    FolderSource,
    HubSource,
    ModelConfig,
    PypiSource,
    json_schema,
    load,
    redact,
    secrets,
    variables,
)
from appliance.domain.errors import ConfigError
from appliance.domain.values import bytes_of, seconds_of
from appliance.domain.weight_size import WeightSize
from appliance.runners.echo.options import EchoModel, EchoOptions
from appliance.runners.embeddings.options import EmbeddingsOptions
from appliance.runners.vllm.options import VllmModel, VllmOptions

Write = Callable[[str], Path]
ECHO = "models:\n  - name: test/echo\n    kind: echo\n"
ONNX = "models:\n  - name: test/onnx\n    kind: onnx\n    source: {path: /m.onnx}\n    options:\n"
VLLM = "models:\n  - name: test/llm\n    kind: vllm\n    source: {path: weights}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "models.yaml"
        file.write_text(text)
        return file

    return write


def refused(file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    return caught.value


# -- what is read ----------------------------------------------------------------------------------------


def test_a_short_file_gets_every_default(write: Write) -> None:
    config = load(write(ECHO))
    assert (config.server.host, config.server.port, config.server.drain_timeout) == ("127.0.0.1", 8000, 30.0)
    assert config.limits.body == 20 * 1024 * 1024
    assert config.hardware.devices == "auto"
    (model,) = config.models
    assert isinstance(model, EchoModel)
    assert model.options == EchoOptions()
    assert (model.source, model.aliases, model.gpu, model.memory, model.pin) == (None, (), None, None, False)


def test_every_kind_of_value_is_read(write: Write) -> None:
    config = load(
        write(
            """
server: {public_url: "https://example.org/", drain_timeout: 1m30s}
limits: {body: 1MB, run_timeout: 5}
hardware:
  devices: [{name: "gpu:0", memory: 2GiB}]
models:
  - name: test/wheel
    kind: vllm
    source: {pypi: package, version: "1.0", path: a/b.gguf, sha256: "%s"}
    aliases: [other/name]
    gpu: 1
    idle_unload_after: 10m
    options: {kv_cache: 64MiB, temperature: 1, enforce_eager: true}
  - name: test/hub
    kind: vllm
    source: {hub: org/repo, revision: main}
    memory: 1.5GiB
  - name: test/folder
    kind: vllm
    source: {path: sub/weights}
    gpu: 0.5
"""
            % ("a" * 64)
        )
    )
    assert config.server.public_url == "https://example.org"
    assert config.server.drain_timeout == 90
    assert (config.limits.body, config.limits.run_timeout) == (1_000_000, 5.0)
    assert not isinstance(config.hardware.devices, str)
    assert config.hardware.devices[0].memory == 2 * 1024**3
    wheel, hub, folder = config.models
    assert wheel.source == PypiSource(pypi="package", version="1.0", path="a/b.gguf", sha256="a" * 64)
    assert (wheel.aliases, wheel.gpu, wheel.idle_unload_after) == (("other/name",), 1.0, 600.0)
    assert isinstance(wheel.options, VllmOptions)
    assert (wheel.options.kv_cache, wheel.options.temperature) == (64 * 1024**2, 1.0)
    assert hub.source == HubSource(hub="org/repo", revision="main")
    assert hub.memory == 3 * 1024**3 // 2
    assert isinstance(folder.source, FolderSource)


def test_relative_paths_count_from_the_file(write: Write, tmp_path: Path) -> None:
    config = load(write("server: {data: ./data}\n" + VLLM))
    assert config.server.data == tmp_path / "data"
    assert isinstance(config.models[0].source, FolderSource)
    assert config.models[0].source.path == tmp_path / "weights"


def test_a_home_folder_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert load(write("server: {data: ~/data}\n" + ECHO)).server.data == Path("/somewhere/data")


def test_environment_variables_are_expanded_in_values(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "a: b # ${WORD}")
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("MISSING", raising=False)
    text = "server: {port: '${PORT}'}\n"
    with pytest.raises(ConfigError, match=r"key server\.port"):  # text in quotes stays text
        load(write(text + ECHO))
    text = "server:\n  port: ${PORT}\n  data: /srv/${EMPTY:-x}-${MISSING:-y}\n"
    text += ECHO + "    description: '${WORD} $${WORD} costs $5 or $$6'\n"
    config = load(write(text))
    assert (config.server.port, config.server.data) == (8123, Path("/srv/x-y"))
    assert config.models[0].description == "a: b # ${WORD} ${WORD} costs $5 or $6"
    assert variables.expand(variables.escape({"a": ["$${x}"]})["a"][0], {}) == "$${x}"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${MISSING}", "the environment variable MISSING is not set: set it, or write ${MISSING:-default}"),
        ("${", "or $$ for a dollar sign"),
        ("${1X}", "or $$ for a dollar sign"),
        ("${X:=y}", "or $$ for a dollar sign"),
    ],
)
def test_a_variable_that_is_missing_is_named_with_its_key(
    write: Write, monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(ConfigError) as refusal:
        load(write(ECHO + f"    description: '{value}'\n"))
    error = refusal.value
    assert (error.line, error.model, error.key) == (4, "test/echo", "description")
    assert says in error.message


def test_keys_are_not_expanded(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"key \$\{HOME\}: unknown key"):
        load(write("${HOME}: 1\n" + ECHO))


@pytest.mark.parametrize(
    "text",
    [
        ECHO + "    visibility: ${SECRET}\n",
        ECHO + "    memory: ${SECRET}\n",
        ECHO + "    kind2: ${SECRET}\n",
        ECHO + "    options: ${SECRET}\n",
        ECHO + "    options: {concurrency: '${SECRET}'}\n",
        ECHO + "    aliases: [a/b, '${SECRET} x']\n",
        ECHO + "    aliases: [x-${SECRET}, 'x-${SECRET}']\n",
        "models: [{name: a/b, kind: '${SECRET}'}]\n",
        "models: [{name: '${SECRET}', kind: echo}]\n",
        "models: ['${SECRET}']\n",
        "server: {port: !!int '${SECRET}'}\n" + ECHO,
        "server: {port: !!timestamp '${SECRET}'}\n" + ECHO,
        "collections: [{name: a, slug: a, description: d, models: ['a/${SECRET}']}]\n" + ECHO,
    ],
)
def test_errors_do_not_show_values_of_variables(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "hunter2secret")
    with pytest.raises(ConfigError) as refusal:
        load(write(text))
    assert "hunter2" not in str(refusal.value)


def test_empty_sections_are_as_if_left_out(write: Write) -> None:
    assert load(write("server:\nlimits:\nhardware:\n" + ECHO + "    options:\n")) == load(write(ECHO))


def test_anchors_and_merges_work(write: Write) -> None:
    config = load(
        write(
            """
models:
  - &base
    name: test/one
    kind: echo
    options: &options {concurrency: 3}
  - <<: *base
    name: test/two
    options: {<<: *options, stream: true}
"""
        )
    )
    assert [model.name for model in config.models] == ["test/one", "test/two"]
    assert config.models[1].options == EchoOptions(concurrency=3, stream=True)


def test_it_is_frozen_and_can_travel(write: Write) -> None:
    config = load(write(ECHO))
    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_model_is_made_of_its_kind() -> None:
    model = ModelConfig.model_validate({"name": "a/b", "kind": "echo", "options": {"stream": True}})
    assert isinstance(model, EchoModel)
    assert model.options.stream


# -- what is refused: the file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("- 1\n", 1, "should be a mapping"),
        ("server: {port: 1\nmodels: []\n", 2, "is not YAML"),
        ("server:\n\tport: 1\n", 2, "is not YAML"),
        ("a: 1\n---\nb: 1\n", 2, "is not YAML"),
        ("server:\n  port: 1\n  host: x\n  port: 2\n", 4, "given twice, first on line 2"),
        ("server: {8000: 1}\n", 1, "must be text"),
        ("models: &a [*a]\n", 1, "inside itself"),
        ("server: {data: 2024-02-31}\n", 1, "put it in quotes"),
        ("models: !!python/name:os.system\n", 1, "is not YAML"),
    ],
)
def test_a_file_that_is_no_config(write: Write, text: str, line: int, says: str) -> None:
    error = refused(write(text))
    assert error.line == line
    assert says in str(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in str(refused(tmp_path / "none.yaml"))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_bytes(b"\xff\xfe\xfa")
    assert "UTF-8" in str(refused(file))
    file.write_bytes(b"a: \0")
    assert "not YAML" in str(refused(file))


# -- what is refused: values -----------------------------------------------------------------------------

REFUSALS = [
    # text, line, model, key, what the message says
    ("sever: {}\n" + ECHO, 1, None, "sever", "did you mean server?"),
    ("server:\n  prot: 1\n" + ECHO, 2, None, "server.prot", "did you mean port?"),
    ("server:\n  zzz: 1\n" + ECHO, 2, None, "server.zzz", "unknown key: remove it (known here: host, port"),
    ("server: {port: 0}\n" + ECHO, 1, None, "server.port", "0 should be greater than or equal to 1"),
    ('server: {port: "80"}\n' + ECHO, 1, None, "server.port", "'80' should be a valid integer"),
    ("server: 3\n" + ECHO, 1, None, "server", "should be a mapping"),
    ("server: {public_url: example.org}\n" + ECHO, 1, None, "server.public_url", "http://"),
    ('server: {public_url: "http://a.example/?b"}\n' + ECHO, 1, None, "server.public_url", "no query"),
    ("server: {data: 3}\n" + ECHO, 1, None, "server.data", "should be a path"),
    ("server: {data: ~no-such-user-here/x}\n" + ECHO, 1, None, "server.data", "unknown user"),
    ("limits: {body: 0}\n" + ECHO, 1, None, "limits.body", "12GiB"),
    ("limits: {body: 20 MEG}\n" + ECHO, 1, None, "limits.body", "12GiB"),
    ("limits: {body: true}\n" + ECHO, 1, None, "limits.body", "12GiB"),
    ("limits: {run_timeout: soon}\n" + ECHO, 1, None, "limits.run_timeout", "1h30m"),
    ("limits: {run_timeout: 0}\n" + ECHO, 1, None, "limits.run_timeout", "greater than 0"),
    ("limits: {run_timeout: -1}\n" + ECHO, 1, None, "limits.run_timeout", "1h30m"),
    ("limits: {run_timeout: .inf}\n" + ECHO, 1, None, "limits.run_timeout", "1h30m"),
    ("limits:\n  budgets: [{predictions: 1}]\n" + ECHO, 2, None, "limits.budgets[0]", "has none of the keys"),
    (
        "limits:\n  budgets: [{account: a, cots: 1}]\n" + ECHO,
        2,
        None,
        "limits.budgets[0].cots",
        "did you mean cost?",
    ),
    (
        "limits:\n  budgets: [{account: a, cost: 1}]\n" + ECHO,
        2,
        None,
        "limits.budgets[0].cost",
        "add prices.per_second",
    ),
    (
        "limits:\n  budgets: [{group: vison, tokens: 1}]\naccess: {groups: {vision: {members: [a]}}}\n"
        + ECHO,
        2,
        None,
        "limits.budgets[0].group",
        "there is no group 'vison'; did you mean vision?",
    ),
    ("limits:\n  budgets: [{model: A, tokens: 1}]\n" + ECHO, 2, None, "limits.budgets[0].model", "owner/"),
    ("hardware: {devices: gpu}\n" + ECHO, 1, None, "hardware.devices", "'auto' or 'none'"),
    ("hardware: {devices: []}\n" + ECHO, 1, None, "hardware.devices", "at least one"),
    ("hardware:\n  devices:\n  - name: a\n" + ECHO, 3, None, "hardware.devices[0].memory", "is missing"),
    (
        "hardware:\n  devices:\n  - {name: a, memory: 1, mem: 2}\n" + ECHO,
        3,
        None,
        "hardware.devices[0].mem",
        "remove",
    ),
    (
        "hardware:\n  devices: [{name: 'a,b', memory: 1}]\n" + ECHO,
        2,
        None,
        "hardware.devices[0].name",
        "letters",
    ),
    ("server: {}\n", 1, None, "models", "is missing"),
    ("models: []\n", 1, None, "models", "at least one"),
    ("models: {a: b}\n", 1, None, "models", "should be a list"),
    ("models:\n  - 3\n", 2, "number 1", None, "should be a mapping"),
    ("models:\n  - kind: echo\n", 2, "number 1", "name", "is missing"),
    (
        "models:\n  - name: test/x\n",
        2,
        "test/x",
        "kind",
        "is missing: add one of cog, diarization, diff",
    ),
    ("models:\n  - name: test/x\n    kind: vlm\n", 3, "test/x", "kind", "no kind 'vlm'; did you mean vllm?"),
    ("models:\n  - name: Test/X\n    kind: echo\n", 2, "Test/X", "name", "lowercase"),
    ("models:\n  - name: test\n    kind: echo\n", 2, "test", "name", "owner/name"),
    ("models:\n  - name: 3\n    kind: echo\n", 2, "number 1", "name", "put it in quotes"),
    (ECHO + "    aliases: other/name\n", 4, "test/echo", "aliases", "should be a list"),
    (ECHO + "    aliases:\n      - ok/ok\n      - no good\n", 6, "test/echo", "aliases[1]", "owner/name"),
    (ECHO + "    memry: 1GiB\n", 4, "test/echo", "memry", "did you mean memory?"),
    (ECHO + "    concurency: 4\n", 4, "test/echo", "concurency", "did you mean options.concurrency?"),
    (
        VLLM.replace("vllm", "transformers") + "    options: {task: reranking, taks: 1}\n",
        5,
        "test/llm",
        "options.taks",
        "unknown key; did you mean task?",
    ),
    (
        ONNX + "      inputs:\n        x: {type: image, widht: 4}\n      outputs: {y: {type: tensor}}\n",
        7,
        "test/onnx",
        "options.inputs.x.widht",
        "unknown key; did you mean width? (known here: tensor, ",
    ),
    (
        ONNX + "      inputs: {x: {type: tensor}}\n      outputs:\n        y: {type: video}\n",
        8,
        "test/onnx",
        "options.outputs.y",
        "should be a mapping with the key type: image, mask, labels",
    ),
    (ECHO + "    options: {max_tokens: 4}\n", 4, "test/echo", "options.max_tokens", "unknown key"),
    (ECHO + "    options: 4\n", 4, "test/echo", "options", "should be a mapping"),
    (ECHO + "    options:\n      concurrency: 0\n", 5, "test/echo", "options.concurrency", "0 should be"),
    (ECHO + "    source: {path: x}\n", 4, "test/echo", "source", "remove the key"),
    (ECHO + "    gpu: 0\n", 4, "test/echo", "gpu", "greater than 0"),
    (ECHO + "    gpu: -1\n", 4, "test/echo", "gpu", "greater than 0"),
    (ECHO + "    gpu: 1.5\n", 4, "test/echo", "gpu", "a share of one device"),
    (ECHO + "    gpu: .nan\n", 4, "test/echo", "gpu", "finite"),
    (ECHO + "    preload: 1\n", 4, "test/echo", "preload", "boolean"),
    (ECHO + "    visibility: hidden\n", 4, "test/echo", "visibility", "'public' or 'private'"),
    (ECHO + "    idle_unload_after: 0\n", 4, "test/echo", "idle_unload_after", "greater than 0"),
    ("models:\n  - name: test/x\n    kind: vllm\n", 2, "test/x", "source", "is missing"),
    (VLLM.replace("{path: weights}", "weights"), 4, "test/llm", "source", "path, hub, pypi or builtin"),
    (VLLM.replace("path", "paht"), 4, "test/llm", "source", "path, hub, pypi or builtin"),
    (VLLM.replace("path: weights", "hub: a/b"), 4, "test/llm", "source.revision", "is missing"),
    (VLLM.replace("path: weights", "path: w, sha: x"), 4, "test/llm", "source.sha", "known here: path"),
    (
        VLLM.replace("path: weights", "pypi: p, version: '1', path: p, sha256: abc"),
        4,
        "test/llm",
        "source.sha256",
        "'abc'",
    ),
    (VLLM + "    options: {temperature: hot}\n", 5, "test/llm", "options.temperature", "number"),
    (VLLM + "    options: {dtype: int4}\n", 5, "test/llm", "options.dtype", "'auto', 'float32'"),
    # values that do not agree with each other
    (ECHO + "    gpu: 0.5\n    memory: 1GiB\n", 5, "test/echo", "memory", "exclude each other"),
    (ECHO + "    environment: {}\n", 4, "test/echo", "environment", "neither requirements nor python"),
    (
        ECHO + "    pin: true\n    idle_unload_after: 1m\n",
        5,
        "test/echo",
        "idle_unload_after",
        "never unloaded",
    ),
    (VLLM + "    options: {max_model_len: 512}\n", 5, "test/llm", "options.max_tokens", "for the prompt"),
    (VLLM + "    memory: 512MiB\n", 3 - 1, "test/llm", "options.kv_cache", "no memory for the weights"),
    (ECHO + "  - name: test/echo\n    kind: echo\n", 4, "test/echo", "name", "choose a unique name"),
    (ECHO + f"    aliases: [{'a0' * 32}]\n", 4, "test/echo", "aliases[0]", "as gpt-4o-mini"),
    (
        ECHO + "    aliases: [tts-1]\n  - {name: test/two, kind: echo, aliases: [tts-1]}\n",
        5,
        "test/two",
        "aliases[0]",
        "'tts-1' is already a name of model test/echo",
    ),
    (ECHO + "    aliases: [test/echo]\n", 4, "test/echo", "aliases[0]", "already a name of model test/echo"),
    (ECHO + "    aliases: [a/b, a/b]\n", 4, "test/echo", "aliases[1]", "already a name of model test/echo"),
    (
        ECHO + "  - name: test/two\n    kind: echo\n    aliases: [test/echo]\n",
        6,
        "test/two",
        "aliases[0]",
        "already a name of model test/echo",
    ),
    (
        "hardware:\n  devices: [{name: a, memory: 1GiB}, {name: a, memory: 1GiB}]\n" + ECHO,
        2,
        None,
        "hardware.devices[1].name",
        "another device",
    ),
    (
        "hardware: {devices: [{name: a, memory: 1GiB}, {name: b, memory: 2GiB}]}\n"
        + ECHO
        + "    memory: 3GiB\n",
        5,
        "test/echo",
        "memory",
        "the largest, b, has 2.0 GiB",
    ),
    (
        "hardware: {devices: [{name: a, memory: 1GiB}]}\n" + ECHO + "    gpu: 2\n",
        5,
        "test/echo",
        "gpu",
        "2 devices are needed, and hardware.devices has 1: lower gpu",
    ),
]


@pytest.mark.parametrize(("text", "line", "model", "key", "says"), REFUSALS)
def test_a_wrong_value_is_refused_with_its_place(
    write: Write, text: str, line: int, model: str | None, key: str | None, says: str
) -> None:
    error = refused(write(text))
    assert (error.line, error.model, error.key) == (line, model, key)
    assert says in str(error)
    assert "\n" not in str(error)  # exactly one problem was found


def test_every_problem_is_reported_in_the_order_of_the_file(write: Write) -> None:
    file = write(ECHO + "    gpu: 0\n    pni: true\nserver:\n  port: 0\n")
    lines = str(refused(file)).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{file}:4", "model test/echo, key gpu"],
        [f"{file}:5", "model test/echo, key pni"],
        [f"{file}:7", "key server.port"],
    ]


# -- sizes and durations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("1KB", 1000), ("2 KiB", 2048), ("1.5MiB", 1572864), ("3TB", 3 * 10**12), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [(2, 2.0), (0.5, 0.5), ("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86400)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


@given(st.text(max_size=8))
def test_any_other_text_is_refused_or_positive(text: str) -> None:
    for read in (bytes_of, seconds_of):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert "such as" in str(error)


# -- what the options mean -------------------------------------------------------------------------------


def test_footprints_hold_weights_cache_and_process() -> None:
    options = VllmOptions(kv_cache=1000, max_adapters=0)
    assert options.footprint(WeightSize(500), "cuda") == 500 + 1000 + 1024**3
    assert options.footprint(WeightSize(500), "cpu") == 2 * 500 + 1000 + 1024**3  # float32 there
    assert (
        VllmOptions(kv_cache=1000, max_adapters=0, dtype="bfloat16").footprint(WeightSize(500), "cpu")
        == 500 + 1000 + 1024**3
    )
    assert EchoOptions().footprint(WeightSize(), "cpu") == 64 * 1024**2
    whole = WeightSize(stored=400, parameters=100)  # in 32 bits
    assert options.footprint(whole, "cpu") == 400 + 1000 + 1024**3
    assert options.footprint(whole, "cuda") == 400 + 1000 + 1024**3
    halved = VllmOptions(kv_cache=1000, max_adapters=0, dtype="bfloat16").footprint(whole, "cuda")
    assert halved == 200 + 1000 + 1024**3
    on_cpu, on_gpu = (EmbeddingsOptions().footprint(WeightSize(200, 100), kind) for kind in ("cpu", "cuda"))
    assert on_cpu - on_gpu == 200


def test_predictions_at_once_follow_the_kind() -> None:
    assert EchoOptions(concurrency=3).predictions_at_once == 3
    assert VllmOptions(max_num_seqs=5).predictions_at_once == 5


@pytest.mark.parametrize("options", [EchoOptions, VllmOptions])
def test_resources_are_options(options: type[EchoOptions | VllmOptions]) -> None:
    assert set(options.model_fields) >= options.UNVERSIONED


# -- the data folder -------------------------------------------------------------------------------------


def test_the_data_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert configuration.home(load(write(ECHO))) == Path("/somewhere/.local/share/appliance")
    config = load(write("server: {data: data}\n" + ECHO))
    assert configuration.home(config) == tmp_path / "data"
    monkeypatch.setenv("APPLIANCE_HOME", "/elsewhere")
    assert configuration.home(config) == Path("/elsewhere")


# -- the schema ------------------------------------------------------------------------------------------


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, section in {"Config": schema, **schema["$defs"]}.items():
        assert section["additionalProperties"] is False, name
        for key, described in section["properties"].items():
            assert described.get("description"), f"{name}.{key}"


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"models": [{"name": "a/b", "kind": "echo", "memory": "1GiB", "idle_unload_after": "1h30m"}]}, True),
        ({"server": None, "models": [{"name": "a/b", "kind": "vllm", "source": {"path": "x"}}]}, True),
        ({"models": [{"name": "a/b", "kind": "echo", "memory": "1 giga"}]}, False),
        ({"models": [{"name": "a/b", "kind": "echo", "idle_unload_after": ""}]}, False),
        ({"models": [{"name": "a/b", "kind": "vllm"}]}, False),
        ({"models": [{"name": "a/b", "kind": "echo", "nmae": 1}]}, False),
        ({"models": []}, False),
    ],
)
def test_the_schema_agrees_with_the_loader(document: dict[str, Any], valid: bool) -> None:
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(document) is valid
    try:
        Config.model_validate(document)
    except ValueError:
        assert not valid
    else:
        assert valid


def test_a_model_class_is_known_for_every_kind() -> None:
    kinds = json_schema()["properties"]["models"]["items"]["discriminator"]["mapping"]
    assert set(kinds) == {
        *(
            "echo",
            "vllm",
            "embeddings",
            "diffusers",
            "whisper",
            "piper",
            "kokoro",
            "transformers",
            "onnx",
            "ocr",
            "vad",
            "diarization",
            "cog",
        )
    }
    assert VllmModel.model_fields["source"].is_required()


def test_footprints_of_quantized_weights() -> None:
    def weights(size: WeightSize, quantization: str | None = None) -> int:
        options = {"kv_cache": 1000, "max_adapters": 0, "quantization": quantization}
        return VllmOptions.model_validate(options).footprint(size, "cuda") - 1000 - 1024**3

    stored = WeightSize(100, None, quantized=True)
    assert weights(stored) == weights(stored, "awq") == weights(stored, "fp8") == 100
    assert VllmOptions(dtype="float32").footprint(stored, "cpu") == VllmOptions().footprint(stored, "cuda")
    plain = WeightSize(200, 100)
    assert (weights(plain), weights(plain, "fp8"), weights(plain, "mxfp8")) == (200, 100, 112)
    assert "quantization" not in VllmOptions().model_dump()


OIDC = """
server: {public_url: https://ai.example.org}
access: {groups: {vision: {members: []}}}
sign_on: {oidc: {issuer: https://id.example.org/, client_id: appliance, EXTRA}}
models: [{name: test/echo, kind: echo}]
"""


def test_an_identity_provider(write: Write) -> None:
    (secret := write("x").parent / "client.secret").write_text("a secret\n")
    extra = "client_secret_file: client.secret, groups_claim: groups, groups: {/ml: vision}, scope: admin"
    config = load(write(OIDC.replace("EXTRA", extra)))
    oidc = config.sign_on.oidc
    assert oidc is not None
    assert (oidc.issuer, oidc.secret()) == ("https://id.example.org/", "a secret"), "the slash belongs to it"
    secret.write_text("a new secret")
    assert oidc.secret() == "a new secret"
    config = load(write(OIDC.replace("EXTRA", "client_secret: very secret")))
    assert "very secret" not in str(redact(config))
    assert "very secret" in secrets(config, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("https://id.example.org/", "http://id.example.org", "should begin with https://"),
        ("server: {public_url: https://ai.example.org}", "server: {}", "set server.public_url too"),
        ("EXTRA", "client_secret: x, client_secret_file: y", "client_secret_file is set too"),
        ("EXTRA", "client_secret_file: missing", "missing"),
        ("EXTRA", "groups_claim: g, groups: {/ml: visoin}", "there is no group 'visoin' in access.groups"),
        ("EXTRA", "groups: {/ml: vision}", "set groups_claim too"),
        ("EXTRA", "nmae: x", "nmae"),
    ],
)
def test_mistakes_about_an_identity_provider(write: Write, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(OIDC.replace(old, new).replace("EXTRA", "name: ID")))
    assert message in str(caught.value)
    assert "sign_on.oidc" in str(caught.value)


def test_an_identity_provider_without_access_gives_nobody_the_scope_admin(write: Write) -> None:
    text = OIDC.replace("access: {groups: {vision: {members: []}}}", "").replace("EXTRA", "scope: admin")
    with pytest.raises(ConfigError, match="without it, everybody at the provider could do everything"):
        load(write(text))


def test_the_shortest_time_of_an_account_and_its_groups_counts(write: Write) -> None:
    kept = "{predictions: 7d, models: {'appliance/*': 24h}, accounts: {ben: 0}, groups: {a: 2h, b: 1h}}"
    groups = "{a: {members: [anna, ben]}, b: {members: [anna]}}"
    config = load(write(f"retention: {kept}\naccess: {{groups: {groups}}}\n" + ECHO))
    policy = config.access_policy
    rules = config.retention_rules(policy)
    assert rules.times == [0, 3600, 7200, 86400, 7 * 86400]
    assert [rules.seconds_for("a/b", account) for account in ("anna", "ben", "carol")] == [3600, 0, 7 * 86400]
    assert rules.seconds_for("appliance/echo", "carol") == 86400
    policy.set_provider_groups("carol", frozenset({"a"}))  # an identity provider named the group
    assert rules.seconds_for("a/b", "carol") == 7200


@pytest.mark.parametrize(
    ("retention", "says"),
    [
        ("{groups: {visoin: 1h}}", "access.groups has no group 'visoin'; did you mean vision?"),
        ("{models: {'no slash': 1h}}", "no slash"),
        ("{accounts: {anna: -1}}", "accounts.anna"),
    ],
)
def test_wrong_retention_is_named(write: Write, retention: str, says: str) -> None:
    text = f"retention: {retention}\naccess: {{groups: {{vision: {{members: [anna]}}}}}}\n" + ECHO
    with pytest.raises(ConfigError) as refusal:
        load(write(text))
    assert says in str(refusal.value)
