"""The bodies of OpenAI's and Anthropic's APIs, as structs.

Requests to language models have many more fields, which vLLM checks; their structs have only the fields that
the gateway reads. vLLM also makes the responses of language models, so those have no structs.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from appliance.protocols.request_types import Request
from appliance.protocols.response_types import Url


def one_of(*values: str | bool) -> Meta:
    """Restrict a field to ``values``; ``gateway.api.requests`` checks it, with Replicate's error message."""
    return Meta(extra_json_schema={"enum": list(values)})


NoStream = Annotated[bool, one_of(False)]
Upload = Annotated[str, Meta(extra_json_schema={"contentMediaType": "application/octet-stream"})]


ResponseStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class CompatRequest(Struct, kw_only=True):
    """A request to a language model, which gets the whole body."""

    model: Annotated[str, Meta(description="owner/name, an alias, or owner/name:version")]
    stream: bool | None = None


class ChatCompletionRequest(CompatRequest, kw_only=True):
    """A chat completion."""

    messages: Any


class CompletionRequest(CompatRequest, kw_only=True):
    """A completion."""

    prompt: Any


class ResponsesRequest(CompatRequest, kw_only=True):
    """A response of OpenAI's Responses API."""

    input: Any
    previous_response_id: Annotated[
        str | None, Meta(description="Continue this response: its input and output come before `input`")
    ] = None
    background: Annotated[
        bool | None, Meta(description="Respond at once; the response is then read with its id")
    ] = None
    store: Annotated[
        bool | None, Meta(description="false: the response cannot be read or continued with its id")
    ] = None
    conversation: Annotated[Any, Meta(description="Not supported")] = None


class MessageRequest(CompatRequest, kw_only=True):
    """A message of Anthropic's API."""

    messages: Any
    max_tokens: Any


class CountTokensRequest(CompatRequest, kw_only=True):
    """Messages whose tokens are counted."""

    messages: Any


class EmbeddingsRequest(Request, kw_only=True):
    """Texts to embed."""

    model: str
    input: Annotated[Any, Meta(description="A text, a list of texts, or token ids of the model's tokenizer")]
    encoding_format: Annotated[str, one_of("float", "base64")] | None = None
    dimensions: Annotated[int | None, Meta(description="One of the model's option dimensions")] = None
    user: str | None = None


class RerankRequest(Request, kw_only=True):
    """Documents to order by their relevance to a query."""

    model: str
    query: str
    documents: Annotated[list[Any], Meta(description="Texts, or objects with the key text")]
    top_n: Annotated[int | None, Meta(description="Maximum number of results. Default: all")] = None
    return_documents: Annotated[
        bool | None, Meta(description="Whether results have their documents. Default: in /v1/rerank only")
    ] = None
    rank_fields: Annotated[
        list[str] | None, Meta(description="Keys of objects to compare with the query, instead of text")
    ] = None
    max_tokens_per_doc: Annotated[
        int | None, Meta(description="Longer documents are truncated. Default: what the model accepts")
    ] = None
    max_chunks_per_doc: Annotated[Any, Meta(description="Not supported")] = None


class ImageRequest(Struct, kw_only=True):
    """Images to generate. Other fields are inputs of the model."""

    model: str
    prompt: str
    n: int | None = None
    size: Annotated[str, Meta(pattern=r"^(auto|\d{1,5}x\d{1,5})$")] | None = None
    response_format: Annotated[str, one_of("url", "b64_json")] | None = None
    output_format: Annotated[str, one_of("png", "jpeg", "webp")] | None = None
    output_compression: int | None = None
    user: str | None = None
    # Features of OpenAI's own models only; the values that request no such feature are accepted.
    quality: Annotated[str, one_of("auto", "standard")] | None = None
    background: Annotated[str, one_of("auto", "opaque")] | None = None
    moderation: Annotated[str, one_of("auto", "low")] | None = None
    stream: NoStream | None = None


class ImageEditRequest(ImageRequest, kw_only=True):
    """An image to edit: a form, not JSON."""

    image: Upload
    mask: Annotated[Upload | None, Meta(description="Mask: transparent where to repaint the image")] = None


class SpeechRequest(Request, kw_only=True):
    """A text to speak."""

    model: str
    input: str
    voice: str | None = None
    response_format: Annotated[str, one_of("mp3", "opus", "aac", "flac", "wav", "pcm")] | None = None
    speed: float | None = None
    stream_format: Annotated[
        str | None,
        one_of("audio", "sse"),
        Meta(
            description="audio: send the audio while it is made; sse: as events. Default: send it at the end"
        ),
    ] = None


class TranscriptionFields(Request, kw_only=True):
    """A ``TranscriptionRequest`` without its file."""

    model: str
    language: str | None = None
    prompt: str | None = None
    response_format: Annotated[str, one_of("json", "text", "srt", "vtt", "verbose_json")] | None = None
    temperature: Annotated[str | None, Meta(description="A number")] = None
    timestamp_granularities: list[Annotated[str, one_of("word", "segment")]] | None = None
    stream: Annotated[str, one_of("true", "false")] | None = None


class TranscriptionRequest(TranscriptionFields, kw_only=True):
    """Speech to transcribe: a form, not JSON."""

    file: Upload


class OpenAIErrorDetail(Struct, kw_only=True):
    """The error in an ``OpenAIErrorResponse``."""

    message: str
    type: str
    param: Annotated[str | None, Meta(description="Name of the wrong field of the request")]
    code: str | None


class OpenAIErrorResponse(Struct, kw_only=True):
    """An error of OpenAI's API."""

    error: OpenAIErrorDetail


class OpenAIErrorEvent(Struct, kw_only=True):
    """The last event of a failed stream of OpenAI's Responses API."""

    type: Literal["error"]
    sequence_number: int
    code: str
    message: str
    param: str | None


class AnthropicErrorDetail(Struct, kw_only=True):
    """The error in an ``AnthropicErrorResponse``."""

    type: str
    message: str


class AnthropicErrorResponse(Struct, kw_only=True):
    """An error of Anthropic's API; also the last event of a failed stream."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class ResponseErrorDetail(Struct, kw_only=True):
    """The error of a failed ``ResponseResponse``."""

    code: str
    message: str


class ResponseResponse(Struct, kw_only=True):
    """A response of OpenAI's Responses API without output. Those with output come from vLLM."""

    id: str
    object: Literal["response"]
    created_at: Annotated[int, Meta(description="Unix time in seconds")]
    status: ResponseStatus
    background: bool
    error: ResponseErrorDetail | None
    incomplete_details: None
    instructions: Any
    max_output_tokens: Any
    metadata: Any
    model: str
    output: list[Any]
    parallel_tool_calls: Any
    previous_response_id: str | None
    reasoning: Any
    store: bool
    temperature: Any
    text: Any
    tool_choice: Any
    tools: Any
    top_p: Any
    truncation: Any
    usage: None


class ResponseDeletion(Struct, kw_only=True):
    """Confirmation that a response was deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemsResponse(Struct, kw_only=True):
    """The messages and other items that a response answers, with those of the responses before it."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AnthropicModelResponse(Struct, kw_only=True):
    """A model, as Anthropic's API shows it."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: Annotated[str, Meta(description="RFC 3339")]


class AnthropicModelsResponse(Struct, kw_only=True):
    """A page of the models that Anthropic's API can call."""

    data: list[AnthropicModelResponse]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OpenAIModelResponse(Struct, kw_only=True):
    """A model, as OpenAI's API shows it."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Meta(description="Unix time in seconds")]
    owned_by: str


class OpenAIModelsResponse(Struct, kw_only=True):
    """The models that OpenAI's API can call."""

    object: Literal["list"]
    data: list[OpenAIModelResponse]


class Embedding(Struct, kw_only=True):
    """The vector of a text."""

    object: Literal["embedding"]
    index: int
    embedding: Annotated[
        list[float] | str, Meta(description="A list, or base64 of little-endian 32-bit floats")
    ]


class EmbeddingsUsage(Struct, kw_only=True):
    """Number of tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Struct, kw_only=True):
    """Vectors of length 1, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class RerankResult(Struct, kw_only=True):
    """The score of a document."""

    index: Annotated[int, Meta(description="Position in the request")]
    relevance_score: Annotated[float, Meta(description="From 0 to 1")]
    document: Annotated[
        dict[str, Any] | UnsetType, Meta(description="As in the request; a text is under the key text")
    ] = UNSET


class RerankUsage(Struct, kw_only=True):
    """Number of tokens of the query and the documents, in Jina's form."""

    prompt_tokens: int
    total_tokens: int


class RerankApiVersion(Struct, kw_only=True):
    """Version of Cohere's API."""

    version: str


class RerankBilledUnits(Struct, kw_only=True):
    """Number of billed searches, in Cohere's form: a query with up to 100 documents is one search."""

    search_units: int


class RerankTokens(Struct, kw_only=True):
    """Number of tokens, in Cohere's form."""

    input_tokens: int
    output_tokens: int


class RerankMeta(Struct, kw_only=True):
    """Version and usage, in Cohere's form."""

    api_version: RerankApiVersion
    billed_units: RerankBilledUnits
    tokens: RerankTokens


class RerankResponse(Struct, kw_only=True):
    """Scored documents, the most relevant first, in Jina's and Cohere's form."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta


class GeneratedImage(Struct, kw_only=True):
    """A generated image; ``response_format`` of the request chooses the field."""

    url: Url | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET


class ImagesResponse(Struct, kw_only=True):
    """Generated images."""

    created: Annotated[int, Meta(description="Unix time in seconds")]
    data: list[GeneratedImage]


class TranscribedWord(Struct, kw_only=True):
    """A word of a transcript. Times are in seconds."""

    word: str
    start: float
    end: float
    probability: float


class TranscribedSegment(Struct, kw_only=True):
    """A segment of a transcript. Times are in seconds."""

    id: int
    seek: Annotated[int, Meta(description="Hundredths of a second")]
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionResponse(Struct, kw_only=True):
    """A transcript. Only ``verbose_json`` has more than the text."""

    task: Literal["transcribe", "translate"] | UnsetType = UNSET
    text: str
    language: str | UnsetType = UNSET
    duration: Annotated[float | UnsetType, Meta(description="Seconds")] = UNSET
    segments: list[TranscribedSegment] | UnsetType = UNSET
    words: Annotated[
        list[TranscribedWord] | UnsetType, Meta(description="Present if timestamp_granularities has word")
    ] = UNSET


#: Each request body that the OpenAPI document describes.
REQUESTS: Final = (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
    MessageRequest,
    CountTokensRequest,
    EmbeddingsRequest,
    RerankRequest,
    ImageRequest,
    ImageEditRequest,
    SpeechRequest,
    TranscriptionRequest,
)
#: Each response body that the OpenAPI document describes.
RESPONSES: Final = (
    OpenAIErrorResponse,
    AnthropicErrorResponse,
    AnthropicModelResponse,
    AnthropicModelsResponse,
    ResponseDeletion,
    InputItemsResponse,
    OpenAIModelResponse,
    OpenAIModelsResponse,
    EmbeddingsResponse,
    RerankResponse,
    ImagesResponse,
    TranscriptionResponse,
)
