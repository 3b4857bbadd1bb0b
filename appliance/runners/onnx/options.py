"""Options of ONNX models in models.yaml: their inputs, outputs and how they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from appliance.domain.section import Section
from appliance.domain.values import GIB, MIB, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

_PROCESS: Final = 512 * MIB  # main memory of a worker process besides the model
_COMPUTING: Final = GIB  # working memory
_INPUT_TENSOR: Final = (
    "Name of the input in the ONNX file. Default: the name of this input, or the only input of the file."
)
_OUTPUT_TENSOR: Final = (
    "Name of the output in the ONNX file. Default: the name of this output, or the only output of the file."
)
_INPUT_TYPE: Final[Any] = Field(description="image, audio, text, number or tensor.")
_OUTPUT_TYPE: Final[Any] = Field(description="image, mask, labels, boxes, vector or tensor.")

Colour = Literal["rgb", "bgr", "grey"]
Layout = Literal["nchw", "nhwc"]
Activation = Literal["none", "sigmoid", "softmax"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Channels = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=3)]


class OnnxInput(Section):
    """The keys of every input."""

    tensor: str | None = Field(default=None, description=_INPUT_TENSOR)
    description: str = Field(default="", description="Description of the input in the API and the UI.")


class ImageInput(OnnxInput):
    """An image file, as a tensor of its pixels."""

    type: Literal["image"] = _INPUT_TYPE
    width: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Width of the tensor in pixels. Default: the width in the ONNX file, or that of the "
        "image.",
    )
    height: int | None = Field(default=None, ge=1, le=8192, description="Height of the tensor in pixels.")
    resize: Literal["stretch", "fit", "crop"] = Field(
        default="stretch",
        description="How an image gets the size of the tensor. stretch: its sides are scaled independently. "
        "fit: it is scaled to fit, and padded. crop: it is scaled to cover the tensor, and its edges are "
        "cut.",
    )
    multiple_of: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="For a tensor with the size of the image: round width and height up to a multiple.",
    )
    max_side: int = Field(
        default=2048, ge=1, le=16384, description="Maximum width and height of the tensor in pixels."
    )
    padding: int = Field(default=114, ge=0, le=255, description="Grey value of the padding of `fit`.")
    colour: Colour = Field(default="rgb", description="Order of the colour channels, or grey: one channel.")
    layout: Layout = Field(
        default="nchw", description="Order of the axes: n batch, c channels, h height, w width."
    )
    divisor: float = Field(
        default=255.0, gt=0, description="Pixel values, 0 to 255, are divided by this number."
    )
    mean: Channels = Field(
        default=(0.0,), description="Subtracted after the division: one number, or one for each channel."
    )
    std: Channels = Field(
        default=(1.0,),
        description="Divisor after the subtraction: one number, or one for each channel.",
    )


class AudioInput(OnnxInput):
    """An audio file, as a tensor of its samples from -1 to 1, mixed to one channel."""

    type: Literal["audio"] = _INPUT_TYPE
    sample_rate: int = Field(default=16_000, ge=1000, le=192_000, description="Samples per second.")
    max_duration: Seconds = Field(
        default=600.0, gt=0, description="Longest audio that is accepted: seconds, or text such as 10m."
    )


class TextInput(OnnxInput):
    """A text, as token ids. `tensor` is the name of the input in the ONNX file that gets them."""

    type: Literal["text"] = _INPUT_TYPE
    tokenizer: str = Field(
        default="tokenizer.json", description="Tokenizer file in the folder of the ONNX file."
    )
    mask: str | None = Field(
        default=None,
        description="Name of the input in the ONNX file that gets 1 for each token and 0 for padding. "
        "Default: attention_mask, if the file has it.",
    )
    types: str | None = Field(
        default=None,
        description="Name of the input in the ONNX file that gets the type of each token. "
        "Default: token_type_ids, if the file has it.",
    )
    max_tokens: int = Field(
        default=512, ge=1, le=1_000_000, description="Maximum number of tokens; a longer text is refused."
    )


class NumberInput(OnnxInput):
    """A number."""

    type: Literal["number"] = _INPUT_TYPE
    default: float | None = Field(
        default=None, description="Value if the prediction gives none. Default: the input is required."
    )
    minimum: float | None = Field(default=None, description="Smallest accepted value.")
    maximum: float | None = Field(default=None, description="Largest accepted value.")


class TensorInput(OnnxInput):
    """Numbers as nested lists of JSON, with the shape that the ONNX file expects."""

    type: Literal["tensor"] = _INPUT_TYPE


class OnnxOutput(Section):
    """The keys of every output."""

    tensor: str | None = Field(default=None, description=_OUTPUT_TENSOR)


class ImageOutput(OnnxOutput):
    """An image file made of a tensor of pixels."""

    type: Literal["image"] = _OUTPUT_TYPE
    colour: Colour = Field(default="rgb", description="Order of the colour channels, or grey: one channel.")
    layout: Layout = Field(default="nchw", description="Order of the axes; without a batch: chw or hwc.")
    factor: float = Field(
        default=255.0, description="Values are multiplied by this number, to be from 0 to 255."
    )
    offset: float = Field(default=0.0, description="Added to the values after the multiplication.")
    normalize: bool = Field(
        default=False, description="Make the smallest value black and the largest white, as for depth."
    )
    original_size: bool = Field(
        default=False, description="Scale the output to the size of the first input image."
    )
    format: Literal["png", "jpeg", "webp"] = Field(default="png", description="Format of the file.")


class MaskOutput(OnnxOutput):
    """A mask with the size of the first input image, as a PNG file."""

    type: Literal["mask"] = _OUTPUT_TYPE
    activation: Activation = Field(
        default="none", description="Function that turns the values into 0 to 1; softmax: over the channels."
    )
    channel: int = Field(
        default=0, ge=0, le=4095, description="Number of the channel that contains the mask, from 0."
    )
    normalize: bool = Field(
        default=False, description="Make the smallest value 0 and the largest 1, as U2Net needs."
    )
    threshold: float | None = Field(
        default=None, description="Values from this number are 1, others 0. Default: the mask is gradual."
    )
    result: Literal["mask", "cutout"] = Field(
        default="mask",
        description="mask: a grey image. cutout: the input image, transparent where the mask is 0.",
    )


class NamedOutput(OnnxOutput):
    """The keys of outputs with names of classes."""

    names: Names = Field(default=(), description="Names of the classes in their order. Default: numbers.")
    names_file: str | None = Field(
        default=None,
        description="Text file in the folder of the ONNX file with a name on each line. Excludes `names`.",
    )


class LabelsOutput(NamedOutput):
    """The most likely classes, with scores."""

    type: Literal["labels"] = _OUTPUT_TYPE
    activation: Activation = Field(
        default="softmax", description="Function that turns the values into scores."
    )
    top_k: int = Field(
        default=5, ge=1, le=1000, description="Default of the input `top_k`: number of labels to return."
    )


class BoxesOutput(NamedOutput):
    """Boxes of objects in the first input image, in its pixels, with labels and scores.

    Each row of the tensor has four coordinates, and then, unless `scores` names another tensor, one score
    for each class.
    """

    type: Literal["boxes"] = _OUTPUT_TYPE
    transposed: bool = Field(
        default=False, description="The tensor has a column for each box, as the exports of YOLOv8 do."
    )
    coordinates: Literal["xyxy", "xywh", "cxcywh", "yxyx"] = Field(
        default="xyxy",
        description="The four numbers of a box: two corners, a corner and the size, or the centre and the "
        "size.",
    )
    unit: Literal["pixels", "fraction"] = Field(
        default="pixels", description="Unit of the coordinates: pixels or fractions of the input tensor."
    )
    objectness: bool = Field(
        default=False,
        description="A score for any object comes before those of the classes, and multiplies them.",
    )
    scores: str | None = Field(
        default=None,
        description="Name of the output in the ONNX file with the scores: of each class, or of each box.",
    )
    classes: str | None = Field(
        default=None, description="Name of the output in the ONNX file with the number of each box's class."
    )
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="Function that turns the values into scores."
    )
    threshold: float = Field(
        default=0.25, ge=0, le=1, description="Default of the input `threshold`: smallest score to return."
    )
    overlap: float = Field(
        default=0.45,
        gt=0,
        le=1,
        description="Of boxes of a class whose intersection over union exceeds this, only the best is "
        "returned. 1: return all.",
    )
    max_boxes: int = Field(default=300, ge=1, le=10_000, description="Maximum number of boxes to return.")


class VectorOutput(OnnxOutput):
    """A vector, such as an embedding."""

    type: Literal["vector"] = _OUTPUT_TYPE
    pooling: Literal["none", "mean", "first"] = Field(
        default="none",
        description="How the vectors of tokens become one: their mean, or the first. none: there is only "
        "one.",
    )
    normalize: bool = Field(default=True, description="Scale the vector to length 1.")


class TensorOutput(OnnxOutput):
    """The numbers of the tensor as nested lists of JSON."""

    type: Literal["tensor"] = _OUTPUT_TYPE


_INPUTS: Final = (ImageInput, AudioInput, TextInput, NumberInput, TensorInput)
_OUTPUTS: Final = (ImageOutput, MaskOutput, LabelsOutput, BoxesOutput, VectorOutput, TensorOutput)
#: The sections under `inputs` and `outputs` by their name, which pydantic adds to the paths of errors.
SECTIONS: Final[dict[str, type[Section]]] = {each.__name__: each for each in (*_INPUTS, *_OUTPUTS)}


def _by_type(sections: tuple[type[Section], ...]) -> Discriminator:
    """Select the section by the key ``type``."""
    known = {section.model_fields["type"].annotation.__args__[0]: section.__name__ for section in sections}  # type: ignore[union-attr] # a Literal

    def tag(value: object) -> str | None:
        if isinstance(value, Section):
            return type(value).__name__
        name = value.get("type") if isinstance(value, Mapping) else None
        return known.get(name) if isinstance(name, str) else None

    message = f"should be a mapping with the key type: {', '.join(known)}"
    return Discriminator(tag, custom_error_type="type", custom_error_message=message)


AnyInput = Annotated[
    Annotated[ImageInput, Tag("ImageInput")]
    | Annotated[AudioInput, Tag("AudioInput")]
    | Annotated[TextInput, Tag("TextInput")]
    | Annotated[NumberInput, Tag("NumberInput")]
    | Annotated[TensorInput, Tag("TensorInput")],
    _by_type(_INPUTS),
]
AnyOutput = Annotated[
    Annotated[ImageOutput, Tag("ImageOutput")]
    | Annotated[MaskOutput, Tag("MaskOutput")]
    | Annotated[LabelsOutput, Tag("LabelsOutput")]
    | Annotated[BoxesOutput, Tag("BoxesOutput")]
    | Annotated[VectorOutput, Tag("VectorOutput")]
    | Annotated[TensorOutput, Tag("TensorOutput")],
    _by_type(_OUTPUTS),
]


def _inputs(given: dict[str, Any]) -> dict[str, Any]:
    for name, spec in given.items():
        if not name.isidentifier():
            raise PydanticCustomError(
                "input_name", f"{name!r} is not a valid name of an input: use letters and _"
            )
        if isinstance(spec, ImageInput) and {len(spec.mean), len(spec.std)} - {1, 3}:
            raise PydanticCustomError("channels", f"mean and std of {name} should have one number or three")
    return given


def _outputs(given: dict[str, Any]) -> dict[str, Any]:
    for name, spec in given.items():
        if isinstance(spec, NamedOutput) and spec.names and spec.names_file is not None:
            raise PydanticCustomError("names", f"{name} has names and names_file: remove one of them")
        if isinstance(spec, BoxesOutput) and spec.classes is not None and spec.scores is None:
            raise PydanticCustomError("classes", f"{name} has classes but no scores: add scores")
    return given


class OnnxOptions(Options):
    """Options of an ONNX model."""

    UNVERSIONED = frozenset({"device", "max_batch"})
    OOM_HINT = "lower its option max_batch, or the width and height of its images"

    file: str | None = Field(
        default=None,
        min_length=1,
        description="The ONNX file, in a folder with several. Default: the only one.",
    )
    inputs: Annotated[dict[str, AnyInput], AfterValidator(_inputs)] = Field(
        min_length=1, description="The inputs of the model: name in the API -> description."
    )
    outputs: Annotated[dict[str, AnyOutput], AfterValidator(_outputs)] = Field(
        min_length=1,
        description="The outputs of the model: name in the API -> description. One output is returned as it "
        "is, several as an object.",
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="Where to compute. auto: on the GPU, if the machine has one."
    )
    max_batch: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="Maximum number of predictions computed together, if the first axis of all inputs and "
        "outputs in the ONNX file has the same name.",
    )

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def predictions_at_once(self) -> int:
        return self.max_batch

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return 2 * weights.stored + _COMPUTING + (_PROCESS if device == "cpu" else 0)


class OnnxModel(ModelConfig):
    """A model in an ONNX file, run with onnxruntime."""

    WEIGHT_FILES = ("*.onnx", "*.onnx_data", "*.onnx.data")

    kind: Literal["onnx"] = Field(description="A model in an ONNX file, run with onnxruntime.")
    source: WeightsSource = Field(description="Source of the weights.")
    options: OnnxOptions = Field(description="Options of this kind.")
