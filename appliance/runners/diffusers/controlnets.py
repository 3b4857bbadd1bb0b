"""ControlNets and an IP-Adapter, which are loaded together with the weights of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, Tag

from appliance.domain.errors import LoadFailed, WeightsError
from appliance.domain.section import Section
from appliance.runners import failures
from appliance.runners.model_config import FolderSource, HubSource, one_of

#: Errors of diffusers, transformers and safetensors about unsuitable weights and inputs.
LIBRARY_ERRORS: Final = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError,
)  # fmt: skip
#: Pipelines that load an IP-Adapter with `IPAdapterMixin.load_ip_adapter`, and that the tests run with one.
WITH_IP_ADAPTER: Final = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
CONTROLNETS: Final = "options.controlnets"  # keys in models.yaml
IP_ADAPTER: Final = "options.ip_adapter.weights"
IMAGE_ENCODER: Final = "options.ip_adapter.image_encoder"

ComponentSource = Annotated[
    Annotated[FolderSource, Tag("FolderSource")] | Annotated[HubSource, Tag("HubSource")],
    one_of("path or hub"),
]


class IpAdapter(Section):
    """An IP-Adapter: an image in a prediction then acts like a part of the prompt."""

    weights: ComponentSource = Field(
        description="Source of the IP-Adapter: a safetensors file, a folder with one, or a hub repository "
        "with the key `file`."
    )
    image_encoder: ComponentSource = Field(
        description="Source of the CLIP image encoder that the IP-Adapter was trained with."
    )


def controlnet_class(key: str, folder: Path) -> str:
    """Return the name of the class of the ControlNet in ``folder``; ``key`` is its key in models.yaml.

    Raises:
        WeightsError: the folder has no ControlNet.
    """
    try:
        found = json.loads((folder / "config.json").read_bytes())["_class_name"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{key}: {folder} has no config.json of a ControlNet in diffusers' format: correct the source"
        ) from error
    return str(found)


def weights_file(key: str, path: Path) -> Path:
    """Return the safetensors file at ``path``: the file itself, or the only one in the folder.

    Raises:
        WeightsError: there is no such file, or there are several.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise WeightsError(
            f"{key}: {path} should be one safetensors file, or a folder with exactly one: correct the source"
        )
    return files[0]


def load_image_encoder(model: str, options: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return arguments of ``DiffusionPipeline.from_pretrained``: the image encoder of an IP-Adapter.

    Raises:
        LoadFailed: the weights cannot be loaded.
    """
    if not options.get("ip_adapter"):
        return {}
    from transformers import CLIPVisionModelWithProjection

    folder = options["extra_weight_paths"][IMAGE_ENCODER]
    encoder = _load(model, IMAGE_ENCODER, CLIPVisionModelWithProjection, folder, dtype)
    return {"image_encoder": encoder}


def load_ip_adapter(model: str, options: Mapping[str, Any], pipe: Any) -> None:
    """Load the IP-Adapter of the options, if there is one, into a pipeline.

    Raises:
        LoadFailed: the IP-Adapter does not fit the pipeline.
    """
    if not options.get("ip_adapter"):
        return
    from safetensors import SafetensorError

    file = Path(options["extra_weight_paths"][IP_ADAPTER])
    try:
        pipe.load_ip_adapter(
            str(file.parent),
            subfolder="",
            weight_name=file.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
    except (*LIBRARY_ERRORS, SafetensorError) as error:
        raise _load_failed(model, IP_ADAPTER, file, error) from error


def load_controlnets(model: str, options: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return the ControlNets of the options, by name.

    Raises:
        LoadFailed: the weights of a ControlNet cannot be loaded.
    """
    import diffusers

    found = {}
    for name in options.get("controlnets", {}):
        model_class = getattr(diffusers, options["controlnet_pipelines"]["controlnet"])
        key = f"{CONTROLNETS}.{name}"
        found[name] = _load(model, key, model_class, options["extra_weight_paths"][key], dtype)
    return found


def _load(model: str, key: str, model_class: Any, folder: str, dtype: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (*LIBRARY_ERRORS, SafetensorError) as error:
        raise _load_failed(model, key, Path(folder), error) from error


def _load_failed(model: str, key: str, path: Path, error: Exception) -> LoadFailed:
    reason = failures.summary(" ".join(str(error).split()) or type(error).__name__, ())
    return LoadFailed(f"model {model}: {key}: {path} cannot be loaded: {reason}")
