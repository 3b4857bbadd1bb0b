"""ControlNets and IP-Adapters beside a pipeline, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from appliance import weights
from appliance.domain.errors import LoadFailed, PredictionFailed, WeightsError
from appliance.runners.diffusers import pipeline
from appliance.runners.diffusers.options import DiffusersModel
from tests.integration.test_diffusers import Loaded, looks, lora, pixels, spec_of
from tests.support import random_pipelines

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of the libraries
]

ASKED: dict[str, Any] = {"prompt": "x", "seed": 3, "output_format": "png"}
FAMILIES: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path, int], Path]]] = {
    "StableDiffusionPipeline": (random_pipelines.stable_diffusion, random_pipelines.controlnet),
    "StableDiffusionXLPipeline": (random_pipelines.stable_diffusion_xl, random_pipelines.controlnet),
    "FluxPipeline": (random_pipelines.flux, random_pipelines.flux_controlnet),
}


def completed(base: Path, home: Path, **options: Any) -> DiffusersModel:
    model = DiffusersModel.model_validate(
        {
            "name": "test/random",
            "kind": "diffusers",
            "source": {"path": str(base)},
            "options": {"num_inference_steps": 2, **options},
        }
    )
    found = weights.complete_options(home, model)
    assert isinstance(found, DiffusersModel)
    return found


async def loaded(base: Path, folder: Path, **options: Any) -> Loaded:
    described = completed(base, folder, **options).options.runner_options(adapted=False)
    spec = msgspec.structs.replace(spec_of(base), options=described)
    found = Loaded(spec, folder / "made")
    await found.runner.setup()
    return found


def plain(file: Path, *colour: int, size: tuple[int, int] = (32, 32)) -> Path:
    Image.new("RGB", size, colour).save(file)
    return file


def all_different(images: list[Any]) -> bool:
    return all((image != other).any() for at, image in enumerate(images) for other in images[:at])


@pytest.mark.parametrize("name", FAMILIES)
async def test_control_images_steer_the_image(tmp_path: Path, name: str) -> None:
    build, build_controlnet = FAMILIES[name]
    base = build(tmp_path / "base")
    sources = {
        each: {"path": str(build_controlnet(tmp_path / each, base, seed))}
        for seed, each in enumerate(("edges", "depth"))
    }
    model = await loaded(base, tmp_path, controlnets=sources)
    dark, bright = plain(tmp_path / "dark.png", 0, 0, 0), plain(tmp_path / "bright.png", 250, 250, 0)
    mask = tmp_path / "mask.png"
    half = Image.new("L", (32, 32), 0)
    half.paste(255, (0, 0, 16, 32))
    half.save(mask)
    fixed = {**ASKED, "size": "32x32"}

    async def made(**input: Any) -> Any:
        (image,) = await model.run(**fixed, **input)
        return pixels(image)

    without = await made()
    edges = await made(controlnet_edges_image=dark)
    depth = await made(controlnet_depth_image=dark)
    both = await made(controlnet_edges_image=dark, controlnet_depth_image=bright)
    swapped = await made(controlnet_edges_image=bright, controlnet_depth_image=dark)
    weaker = await made(controlnet_edges_image=dark, controlnet_edges_conditioning_scale=0.5)
    early = await made(controlnet_edges_image=dark, controlnet_edges_end=0.5)
    assert all_different([without, edges, depth, both, swapped, weaker, early])
    off = [
        await made(controlnet_edges_image=file, controlnet_edges_conditioning_scale=0.0)
        for file in (dark, bright)
    ]
    assert abs(off[0] - off[1]).max() <= 1
    begun = await made(image=bright, prompt_strength=0.9, controlnet_edges_image=dark)
    begun_otherwise = await made(image=bright, prompt_strength=0.9, controlnet_edges_image=bright)
    painted = await made(image=bright, mask=mask, prompt_strength=0.9, controlnet_edges_image=dark)
    assert all_different([edges, begun, begun_otherwise, painted])
    assert (await made() == without).all()
    several = await model.run(**fixed, controlnet_edges_image=dark, num_outputs=2)
    assert abs(pixels(several[0]) - edges).max() <= 2


async def test_the_only_controlnet_has_the_names_of_diffusers(tmp_path: Path) -> None:
    base = random_pipelines.stable_diffusion(tmp_path / "base")
    canny = random_pipelines.controlnet(tmp_path / "canny", base, 1)
    model = await loaded(base, tmp_path, controlnets={"canny": {"path": str(canny)}})
    interface = model.runner.interface(model.spec.options)
    assert interface.aliases["control_image"] == "controlnet_canny_image"
    assert interface.aliases["controlnet_conditioning_scale"] == "controlnet_canny_conditioning_scale"
    assert interface.aliases["control_guidance_end"] == "controlnet_canny_end"
    assert "controlnet_canny_image" in interface.file_inputs
    control = plain(tmp_path / "control.png", 9, 9, 200, size=(48, 24))
    (image,) = await model.run(**ASKED, controlnet_canny_image=control)
    assert looks(image)[1] == (40, 16), "the aspect ratio of the control image"
    (tmp_path / "text").write_text("no image")
    with pytest.raises(PredictionFailed, match=r"input\.controlnet_canny_image: this is not an image"):
        await model.run(**ASKED, controlnet_canny_image=tmp_path / "text")


@pytest.mark.parametrize("build", [random_pipelines.stable_diffusion, random_pipelines.stable_diffusion_xl])
async def test_an_ip_adapter_image_acts_like_a_prompt(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    base = build(tmp_path / "base")
    file, encoder = random_pipelines.ip_adapter(tmp_path / "adapter", base)
    control = random_pipelines.controlnet(tmp_path / "control", base, 1)
    sources = {"weights": {"path": str(file)}, "image_encoder": {"path": str(encoder)}}
    model = await loaded(base, tmp_path, ip_adapter=sources, controlnets={"edges": {"path": str(control)}})
    unadapted = await loaded(base, tmp_path / "unadapted")
    red, blue = plain(tmp_path / "red.png", 200, 0, 0), plain(tmp_path / "blue.png", 0, 0, 200)

    async def made(**input: Any) -> Any:
        (image,) = await model.run(**ASKED, **input)
        return pixels(image)

    without = await made()
    assert (without == pixels((await unadapted.run(**ASKED))[0])).all()
    like_red, like_blue = await made(ip_adapter_image=red), await made(ip_adapter_image=blue)
    weaker = await made(ip_adapter_image=red, ip_adapter_scale=0.3)
    from_image = await made(ip_adapter_image=red, image=blue, prompt_strength=0.9)
    controlled = await made(ip_adapter_image=red, controlnet_edges_image=blue)
    assert all_different([without, like_red, like_blue, weaker, from_image, controlled])
    several = await model.run(**ASKED, ip_adapter_image=red, num_outputs=2)
    assert abs(pixels(several[0]) - like_red).max() <= 2
    following, _ = await model.run(**{**ASKED, "seed": 4}, ip_adapter_image=red, num_outputs=2)
    assert abs(pixels(several[1]) - pixels(following)).max() <= 2, "each image has the next seed"
    if build is random_pipelines.stable_diffusion:
        adapter = str(lora(tmp_path / "lora.safetensors", 1))
        assert all_different([like_red, await made(ip_adapter_image=red, lora_weights=adapter)])
    assert (await made() == without).all()


def test_components_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    base = random_pipelines.stable_diffusion(tmp_path / "base")
    flux = random_pipelines.flux(tmp_path / "flux")
    foreign = random_pipelines.flux_controlnet(tmp_path / "foreign", flux, 1)
    file, encoder = random_pipelines.ip_adapter(tmp_path / "adapter", base)

    def refusal(folder: Path = base, **options: Any) -> str:
        with pytest.raises(WeightsError) as caught:
            completed(folder, tmp_path, **options)
        return caught.value.detail

    gone = {"canny": {"path": str(tmp_path / "gone")}}
    assert "options.controlnets.canny: " in refusal(controlnets=gone)
    assert "gone does not exist: correct the source, or run `appliance pull`" in refusal(controlnets=gone)
    assert refusal(controlnets={"canny": {"path": str(foreign)}}) == (
        "options.controlnets.canny has a FluxControlNetModel, but StableDiffusionPipeline needs a "
        "ControlNetModel: correct the source"
    )
    assert "has no config.json of a ControlNet" in refusal(controlnets={"canny": {"path": str(tmp_path)}})
    adapter = {"weights": {"path": str(file)}, "image_encoder": {"path": str(encoder)}}
    assert "options.ip_adapter is supported with StableDiffusionPipeline and" in refusal(
        flux, ip_adapter=adapter
    )
    empty = {**adapter, "weights": {"path": str(tmp_path)}}
    assert "options.ip_adapter.weights: " in refusal(ip_adapter=empty)
    klein = random_pipelines.flux_2_klein(tmp_path / "klein")
    assert "options.controlnets: Flux2KleinPipeline is not supported" in refusal(
        klein, controlnets={"canny": {"path": str(foreign)}}
    )


async def test_damaged_components_are_named(tmp_path: Path) -> None:
    base = random_pipelines.stable_diffusion(tmp_path / "base")
    control = random_pipelines.controlnet(tmp_path / "canny", base, 1)
    file, encoder = random_pipelines.ip_adapter(tmp_path / "adapter", base)
    adapter = {"weights": {"path": str(file)}, "image_encoder": {"path": str(encoder)}}

    async def refusal(**options: Any) -> str:
        with pytest.raises(LoadFailed) as caught:
            await loaded(base, tmp_path, **options)
        return caught.value.detail

    large = random_pipelines.stable_diffusion_xl(tmp_path / "large")
    other, _ = random_pipelines.ip_adapter(tmp_path / "other", large)
    foreign = {**adapter, "weights": {"path": str(other)}}
    assert "options.ip_adapter.weights: " in await refusal(ip_adapter=foreign)
    (encoder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "options.ip_adapter.image_encoder: " in await refusal(ip_adapter=adapter)
    (control / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    assert "options.controlnets.canny: " in await refusal(controlnets={"canny": {"path": str(control)}})


def test_components_count_as_memory(tmp_path: Path) -> None:
    base = random_pipelines.stable_diffusion(tmp_path / "base")
    control = random_pipelines.controlnet(tmp_path / "canny", base, 1)
    size = weights.weight_size_of(base)
    plain = completed(base, tmp_path).options
    controlled = completed(base, tmp_path, controlnets={"canny": {"path": str(control)}}).options
    added = weights.weight_size_of(control)
    assert controlled.footprint(size, "cpu") - plain.footprint(size, "cpu") == added.in_32_bits
    assert controlled.footprint(size, "cuda") - plain.footprint(size, "cuda") == added.in_16_bits


def test_every_pipeline_with_controlnets_is_tested() -> None:
    known = {pipeline._tables()["AUTO_TEXT2IMAGE_PIPELINES_MAPPING"][key] for key in pipeline._CONTROLNETS}
    assert known == set(FAMILIES)
