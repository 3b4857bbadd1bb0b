"""Operations of the served OpenAPI document: of Replicate's API, ``/admin`` and the compat APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

#: Paths that begin with these are not below ``/v1``.
OTHER_PREFIXES: Final = ("/admin/", "/openai/", "/anthropic/", "/healthz", "/readyz", "/metrics")


#: Shape of a response that may be any JSON.
ANY_JSON: Final = "application/json"


class Operation(NamedTuple):
    """A row of ``OPERATIONS``."""

    method: str
    path: str
    id: str
    summary: str
    responses: dict[int, str | None]  # status -> component, media type, or None for an empty body
    body: str | None = None  # component
    parameters: Sequence[str] = ()
    required: Sequence[str] = ()  # query parameters
    errors: Sequence[int] = (401, 403, 404, 422, 429)
    error: str = ""  # component of all errors; by default Problem, InvalidInput or Throttled

    @property
    def server(self) -> str:
        """URL that the path is relative to."""
        return "/" if self.path.startswith(OTHER_PREFIXES) else "/v1"


_CREATES: Final = ("Prefer", "Cancel-After")
_LISTS: Final = ("cursor", "created_after", "created_before", "source", "parent")
CREATED: Final[dict[int, str | None]] = {201: "Prediction", 202: "Prediction"}
_MODEL: Final = "/models/{owner}/{name}"
_VERSION: Final = f"{_MODEL}/versions/{{id}}"
_DEPLOYMENT: Final = "/deployments/{owner}/{name}"
_RUN: Final = (400, 401, 402, 403, 404, 409, 413, 422, 429, 503)
_READ: Final = (401, 403, 404, 429)
_CHANGE: Final = (400, 401, 403, 404, 413, 422, 429)
_ADDS: Final = (400, 401, 403, 404, 409, 413, 422, 429)

REPLICATE: Final = (
    Operation("get", "/account", "account.get", "Get the account of the token", {200: "Account"},
              errors=_READ),
    Operation("get", "/builds", "builds.list", "List your unfinished builds, oldest first",
              {200: "BuildPage"}, errors=_READ),
    Operation("post", "/builds/{id}/cancel", "builds.cancel", "Cancel a build", {200: "Build"},
              errors=_READ),
    Operation("get", "/builds/{id}", "builds.get", "Get a build of a version", {200: "Build"},
              errors=_READ),
    Operation("get", "/collections", "collections.list", "List collections of models",
              {200: "CollectionPage"},
              errors=_READ),
    Operation("get", "/collections/{slug}", "collections.get", "Get a collection", {200: "CollectionDetail"},
              errors=_READ),
    Operation("get", "/deployments", "deployments.list", "List your deployments", {200: "DeploymentPage"},
              errors=_READ),
    Operation("post", "/deployments", "deployments.create", "Create a deployment", {200: "Deployment"},
              "DeploymentRequest", errors=_ADDS),
    Operation("get", _DEPLOYMENT, "deployments.get", "Get a deployment", {200: "Deployment"}, errors=_READ),
    Operation("patch", _DEPLOYMENT, "deployments.update", "Create a new release of a deployment",
              {200: "Deployment"}, "DeploymentUpdateRequest", errors=_ADDS),
    Operation("delete", _DEPLOYMENT, "deployments.delete",
              "Delete a deployment that is offline and was not used recently",
              {204: None}, errors=_CHANGE),
    Operation("post", f"{_DEPLOYMENT}/predictions", "deployments.predictions.create",
              "Create a prediction with a deployment", CREATED, "PredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/files", "files.list", "List your uploads", {200: "FilePage"}, None, ("cursor",),
              errors=_READ),
    Operation("post", "/files", "files.create", "Upload a file", {201: "File"}, "FileRequest",
              errors=_ADDS),
    Operation("get", "/files/{id}", "files.get", "Get the metadata of an upload", {200: "File"},
              errors=_READ),
    Operation("delete", "/files/{id}", "files.delete", "Delete an upload", {204: None}, errors=_READ),
    Operation("get", "/files/{id}/download", "files.download", "Download an upload with a signed URL",
              {200: "*/*"}, None, (), ("owner", "expiry", "signature"), (404,)),
    Operation("get", "/hardware", "hardware.list", "List the kinds of devices of this machine",
              {200: "Hardware"}, errors=_READ),
    Operation("get", "/models", "models.list", "List public models", {200: "ModelPage"}, None,
              ("cursor", "sort_by", "sort_direction"), (), (401, 403, 404, 422, 429)),
    Operation("post", "/models", "models.create",
              "Create a model; its versions come from trainings and builds",
              {201: "Model"}, "ModelRequest", errors=_CHANGE),
    Operation("query", "/models", "models.search", "Search public models", {200: "ModelPage"},
              "text/plain", ("cursor",), errors=(400, 401, 403, 404, 413, 429)),
    Operation("get", _MODEL, "models.get", "Get a model", {200: "Model"}, errors=_READ),
    Operation("patch", _MODEL, "models.update", "Change the description and links of a model", {200: "Model"},
              "ModelUpdateRequest", errors=_CHANGE),
    Operation("delete", _MODEL, "models.delete", "Delete a private model without versions", {204: None},
              errors=_CHANGE),
    Operation("get", f"{_MODEL}/examples", "models.examples.list",
              "List the example predictions of a model", {200: "PredictionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/predictions", "models.predictions.create",
              "Create a prediction with a model's newest version", CREATED, "PredictionRequest", _CREATES,
              errors=_RUN),
    Operation("get", f"{_MODEL}/readme", "models.readme.get", "Get a model's readme, in Markdown",
              {200: "text/plain"}, errors=_READ),
    Operation("get", f"{_MODEL}/versions", "models.versions.list", "List a model's versions, newest first",
              {200: "VersionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/versions", "models.versions.create",
              "Build a version from the Cog project in an uploaded archive", {202: "Build"}, "VersionRequest",
              errors=_ADDS),
    Operation("get", _VERSION, "models.versions.get", "Get a version", {200: "Version"}, errors=_READ),
    Operation("delete", _VERSION, "models.versions.delete",
              "Delete a version of a private model, with its predictions", {202: None}, errors=_CHANGE),
    Operation("post", f"{_VERSION}/trainings", "trainings.create", "Train a new version", {201: "Training"},
              "TrainingRequest", ("Cancel-After",), errors=_RUN),
    Operation("get", "/predictions", "predictions.list", "List your predictions, newest first",
              {200: "PredictionPage"}, None, _LISTS),
    Operation("post", "/predictions", "predictions.create", "Create a prediction", CREATED,
              "VersionPredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/predictions/{id}", "predictions.get", "Get a prediction", {200: "Prediction"},
              errors=_READ),
    Operation("post", "/predictions/{id}/cancel", "predictions.cancel", "Cancel a prediction",
              {200: "Prediction"}, errors=_READ),
    Operation("get", "/search", "search", "Search models and collections", {200: "SearchResults"}, None,
              ("limit",),
              ("query",), (400, 401, 403, 422, 429, 500)),
    Operation("get", "/trainings", "trainings.list", "List your trainings, newest first",
              {200: "TrainingPage"},
              None, _LISTS),
    Operation("get", "/trainings/{id}", "trainings.get", "Get a training", {200: "Training"}, errors=_READ),
    Operation("post", "/trainings/{id}/cancel", "trainings.cancel", "Cancel a training", {200: "Training"},
              errors=_READ),
    Operation("get", "/webhooks/default/secret", "webhooks.default.secret.get",
              "Get the key that signs your webhooks", {200: "WebhookSecret"}, errors=_READ),
)  # fmt: skip

_ADMIN_MODEL: Final = "/admin/models/{owner}/{name}"
_EDITS: Final = (400, 401, 403, 404, 409, 429)
_PERIOD: Final = ("from", "to", "by")
_AUDIT: Final = ("cursor", "who", "action", "object", "since", "until", "limit")
_HISTORY: Final = (*_LISTS, "limit", "model", "status", "owner", "token", "type", "slower_than", "search")
_ALL_HISTORY: Final = tuple(name for name in _HISTORY if name not in {"cursor", "limit"})

ADMIN: Final = (
    Operation("get", "/healthz", "monitoring.health", "Tell whether the gateway is alive", {200: "Health"},
              errors=()),
    Operation("get", "/readyz", "monitoring.readiness", "Tell whether predictions are accepted",
              {200: "Readiness", 503: "Readiness"}, errors=()),
    Operation("get", "/metrics", "monitoring.metrics", "Get metrics for Prometheus", {200: "text/plain"},
              errors=_READ),
    Operation("get", "/admin/me", "admin.me", "Get the owner, name and scope of the token", {200: "Me"},
              errors=_READ),
    Operation("get", "/admin/status", "admin.status", "Get the state of the devices and models",
              {200: "ApplianceStatus"}, errors=_READ),
    Operation("get", "/admin/residency", "admin.residency",
              "Get the models in memory, the models that wait for memory, and the scheduler's decisions",
              {200: "Residency"}, errors=_READ),
    Operation("get", "/admin/machine", "admin.machine", "Get main memory and disk of the machine",
              {200: "Machine"}, errors=_READ),
    Operation("get", "/admin/nodes", "admin.nodes", "Get the machines of the cluster", {200: "Nodes"},
              errors=_READ),
    Operation("post", "/admin/nodes/{name}/drain", "admin.nodes.drain",
              "Load no more models on a node, and unload those there after their predictions", {202: "Node"},
              errors=(409, *_READ)),
    Operation("delete", "/admin/nodes/{name}/drain", "admin.nodes.undrain",
              "Load models on a node again", {202: "Node"}, errors=(409, *_READ)),
    Operation("get", "/admin/history", "admin.history", "Get the last hour of the devices and models",
              {200: "History"}, None, ("points",), errors=(422, *_READ)),
    Operation("get", "/admin/config", "admin.config",
              "Get models.yaml as it is in effect, with every default and without secrets",
              {200: ANY_JSON}, errors=_READ),
    Operation("post", "/admin/reload", "admin.reload", "Apply models.yaml again", {200: "Reload"},
              errors=(400, *_READ)),
    Operation("post", f"{_ADMIN_MODEL}/load", "admin.models.load", "Load a model", {200: "ModelState"},
              errors=(422, 500, 503, *_READ)),
    Operation("post", f"{_ADMIN_MODEL}/unload", "admin.models.unload",
              "Unload a model after its predictions", {202: "ModelState"}, errors=(422, *_READ)),
    Operation("post", f"{_ADMIN_MODEL}/pin", "admin.models.pin", "Load a model and never evict it",
              {202: "ModelState"}, errors=(422, 503, *_READ)),
    Operation("post", f"{_ADMIN_MODEL}/unpin", "admin.models.unpin", "Allow the eviction of a model",
              {202: "ModelState"}, errors=(422, *_READ)),
    Operation("get", f"{_ADMIN_MODEL}/logs", "admin.models.logs",
              "Get the end of the output of a model's worker processes", {200: "ModelLogs"}, None, ("lines",),
              errors=(422, *_READ)),
    Operation("get", f"{_ADMIN_MODEL}/logs/events", "admin.models.logs.events",
              "Stream the output of a model's worker processes as server-sent events",
              {200: "text/event-stream"}, None, ("lines",), errors=(422, *_READ)),
    Operation("put", f"{_ADMIN_MODEL}/examples/{{id}}", "admin.models.examples.add",
              "Make a prediction an example of its model", {204: None}, errors=(400, *_READ)),
    Operation("delete", f"{_ADMIN_MODEL}/examples/{{id}}", "admin.models.examples.remove",
              "Remove an example from its model", {204: None}, errors=_READ),
    Operation("delete", _ADMIN_MODEL, "admin.models.remove", "Remove a model from models.yaml",
              {200: "Removal"}, None, ("prune",), errors=_EDITS),
    Operation("get", f"{_ADMIN_MODEL}/entry", "admin.models.entry", "Get the entry of a model in its file",
              {200: "ConfigEntry"}, errors=_EDITS),
    Operation("get", "/admin/config/schema", "admin.config.schema", "Get the JSON Schema of models.yaml",
              {200: ANY_JSON}, errors=_READ),
    Operation("get", "/admin/config/file", "admin.config.file", "Get the text of a config file",
              {200: "ConfigFile"}, None, ("file",), errors=_EDITS),
    Operation("put", "/admin/config/file", "admin.config.file.write", "Replace a config file and reload",
              {200: "ConfigWrite"}, "ConfigWriteRequest", errors=_ADDS),
    Operation("post", "/admin/config/check", "admin.config.check",
              "Check a new text of a config file, without any change", {200: "ConfigCheck"},
              "ConfigCheckRequest", errors=_ADDS),
    Operation("get", f"{_ADMIN_MODEL}/update", "admin.models.update.find",
              "Get the newest revision of a model's source", {200: "Update"}, errors=_EDITS),
    Operation("post", f"{_ADMIN_MODEL}/update", "admin.models.update",
              "Download the newest revision of a model and change models.yaml", {202: "Addition"},
              errors=_EDITS),
    Operation("get", "/admin/catalogue", "admin.catalogue", "Search the catalogue of models",
              {200: "Catalogue"}, None, ("query",), errors=_EDITS),
    Operation("get", "/admin/hub", "admin.hub", "Search the Hugging Face hub", {200: "HubSearch"}, None, (),
              ("query",), _EDITS),
    Operation("post", "/admin/proposals", "admin.proposals.create",
              "Look at a model, and at the change of models.yaml for it, without any change",
              {200: "Proposal"}, "ProposalRequest", errors=_ADDS),
    Operation("get", "/admin/additions", "admin.additions.list",
              "List the models that are being added or updated, newest first", {200: "AdditionPage"},
              errors=_READ),
    Operation("post", "/admin/additions", "admin.additions.create",
              "Download a model and write it to models.yaml", {202: "Addition"}, "AdditionRequest",
              errors=_ADDS),
    Operation("get", "/admin/additions/{id}", "admin.additions.get", "Get an addition and its progress",
              {200: "Addition"}, errors=_READ),
    Operation("get", "/admin/additions/{id}/events", "admin.additions.events",
              "Stream the progress of an addition as server-sent events", {200: "text/event-stream"},
              errors=_READ),
    Operation("post", "/admin/additions/{id}/cancel", "admin.additions.cancel", "Cancel an addition",
              {200: "Addition"}, errors=_READ),
    Operation("get", "/admin/weights/unused", "admin.weights.unused", "List weights that no model uses",
              {200: "UnusedWeightsPage"}, errors=_EDITS),
    Operation("post", "/admin/weights/prune", "admin.weights.prune", "Delete unused weights",
              {200: "Prune"}, "PruneRequest", errors=_ADDS),
    Operation("get", "/admin/audit", "admin.audit.list", "List the audit log, newest records first",
              {200: "AuditPage"}, parameters=_AUDIT),
    Operation("post", "/admin/signins", "admin.signins.create",
              "Record that the caller signs in to the UI", {204: None}),
    Operation("post", "/admin/signouts", "admin.signouts.create",
              "End the session of the caller, or record that a token signs out of the UI",
              {200: "SignOut", 204: None}),
    Operation("get", "/admin/sign-in", "admin.sign_in_methods",
              "List how people can sign in to the UI", {200: "SignInMethods"}, errors=()),
    Operation("get", "/admin/sessions", "admin.sessions.list",
              "List your sessions of the UI, or those of all people for an operator",
              {200: "SessionPage"}, errors=_READ),
    Operation("post", "/admin/sign-in/password", "admin.sessions.create",
              "Sign in with a password; only for the UI process", {201: "Session"}, "SignInRequest",
              errors=_CHANGE),
    Operation("post", "/admin/sign-in/provider", "admin.sign_in.provider",
              "Begin a sign-in at the identity provider; only for the UI process", {201: "ProviderSignIn"},
              errors=(403, 404, 502)),
    Operation("post", "/admin/sign-in/provider/callback", "admin.sign_in.provider.callback",
              "Finish a sign-in at the identity provider; only for the UI process", {201: "Session"},
              "ProviderCallbackRequest", errors=(502, *_CHANGE)),
    Operation("delete", "/admin/sessions/{id}", "admin.sessions.revoke", "Revoke a session of the UI",
              {204: None}, errors=_READ),
    Operation("get", "/admin/tokens", "admin.tokens.list", "List all tokens, oldest first",
              {200: "TokenPage"}, errors=_READ),
    Operation("post", "/admin/tokens", "admin.tokens.create", "Create a token", {201: "Token"},
              "TokenRequest", errors=_CHANGE),
    Operation("delete", "/admin/tokens/{id}", "admin.tokens.revoke", "Revoke a token", {200: "Token"},
              errors=_READ),
    Operation("get", "/admin/accounts/{account}/data", "admin.accounts.data.get",
              "Count what is stored of an account", {200: "AccountData"}, errors=_READ),
    Operation("delete", "/admin/accounts/{account}/data", "admin.accounts.data.erase",
              "Erase the data of an account, and wait until it is erased", {200: "AccountData"},
              errors=(401, 403, 409, 429)),
    Operation("get", "/admin/conversations", "admin.conversations.list",
              "List your conversations of the chat page, the last changed first",
              {200: "ConversationPage"}, errors=_READ),
    Operation("post", "/admin/conversations", "admin.conversations.create", "Store a conversation",
              {201: "ConversationSummary"}, "ConversationRequest", errors=_ADDS),
    Operation("get", "/admin/conversations/{id}", "admin.conversations.get",
              "Get a conversation with its messages", {200: "Conversation"}, errors=_READ),
    Operation("put", "/admin/conversations/{id}", "admin.conversations.replace", "Replace a conversation",
              {200: "ConversationSummary"}, "ConversationUpdateRequest", errors=_ADDS),
    Operation("delete", "/admin/conversations/{id}", "admin.conversations.delete",
              "Delete a conversation, and input and output of the predictions of its answers", {204: None},
              errors=_READ),
    Operation("post", "/admin/webhooks/secret", "admin.webhooks.secret.rotate",
              "Replace the key that signs your webhooks", {201: "NewWebhookSecret"}, "WebhookSecretRequest",
              errors=_CHANGE),
    Operation("get", "/admin/predictions", "admin.predictions.list",
              "List predictions and trainings with details for operators, newest first",
              {200: "AdminPredictionPage"}, None, _HISTORY),
    Operation("get", "/admin/predictions.csv", "admin.predictions.csv",
              "Download all predictions that match the filters as CSV", {200: "text/csv"}, None,
              _ALL_HISTORY),
    Operation("get", "/admin/predictions.jsonl", "admin.predictions.jsonl",
              "Download all predictions that match the filters, one JSON object per line",
              {200: "application/jsonl"}, None, _ALL_HISTORY),
    Operation("delete", "/admin/predictions/{id}", "admin.predictions.delete",
              "Delete the input, output, logs and files of a prediction that has ended", {204: None},
              errors=(409, *_READ)),
    Operation("get", "/admin/predictions/{id}", "admin.predictions.get",
              "Get a prediction with its timeline and webhook deliveries", {200: "AdminPrediction"},
              errors=_READ),
    Operation("post", "/admin/predictions/{id}/cancel", "admin.predictions.cancel",
              "Cancel a prediction of any owner", {200: "AdminPrediction"}, errors=_READ),
    Operation("get", "/admin/usage", "admin.usage", "Get usage and its cost", {200: "Usage"}, None, _PERIOD),
    Operation("get", "/admin/usage.csv", "admin.usage.csv", "Get usage and its cost as CSV",
              {200: "text/csv"}, None, _PERIOD),
    Operation("get", "/admin/limits", "admin.limits", "Get what is used and left of the budgets",
              {200: "Limits"}, errors=(401, 403, 429)),
)  # fmt: skip

_COMPAT_RUN: Final = (400, 401, 402, 403, 404, 409, 413, 429, 500, 503)
_COMPAT_READ: Final = (400, 401, 403, 404, 429)
_OPENAI_RUN: Final = ((), (), _COMPAT_RUN, "OpenAIError")
_ANTHROPIC_RUN: Final = ((), (), _COMPAT_RUN, "AnthropicError")

COMPAT: Final = (
    Operation("post", "/openai/v1/chat/completions", "openai.chat.completions.create",
              "Create a chat completion", {200: ANY_JSON}, "ChatCompletionRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/completions", "openai.completions.create", "Create a completion",
              {200: ANY_JSON}, "CompletionRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/responses", "openai.responses.create", "Create a response",
              {200: ANY_JSON}, "ResponsesRequest", *_OPENAI_RUN),
    Operation("get", "/openai/v1/responses/{id}", "openai.responses.retrieve", "Get a stored response",
              {200: ANY_JSON}, None, ("stream", "starting_after"), (), _COMPAT_READ, "OpenAIError"),
    Operation("delete", "/openai/v1/responses/{id}", "openai.responses.delete", "Delete a stored response",
              {200: "ResponseDeletion"}, None, (), (), _COMPAT_READ, "OpenAIError"),
    Operation("post", "/openai/v1/responses/{id}/cancel", "openai.responses.cancel",
              "Cancel a response that runs in the background", {200: ANY_JSON}, None, (), (), _COMPAT_READ,
              "OpenAIError"),
    Operation("get", "/openai/v1/responses/{id}/input_items", "openai.responses.input_items.list",
              "List the items that a response answers", {200: "InputItems"}, None,
              ("limit:100", "order", "after"), (), _COMPAT_READ, "OpenAIError"),
    Operation("post", "/openai/v1/embeddings", "openai.embeddings.create", "Embed texts",
              {200: "Embeddings"}, "EmbeddingsRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/rerank", "openai.rerank", "Order documents by relevance, as Jina does",
              {200: "Rerank"}, "RerankRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v2/rerank", "openai.rerank.v2", "Order documents by relevance, as Cohere does",
              {200: "Rerank"}, "RerankRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/images/generations", "openai.images.generate", "Generate images",
              {200: "Images"}, "ImageRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/images/edits", "openai.images.edit", "Edit an image", {200: "Images"},
              "ImageEditRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/audio/speech", "openai.audio.speech.create", "Speak a text",
              {200: "audio/*"}, "SpeechRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/audio/transcriptions", "openai.audio.transcriptions.create",
              "Transcribe speech", {200: "Transcription"}, "TranscriptionRequest", *_OPENAI_RUN),
    Operation("post", "/openai/v1/audio/translations", "openai.audio.translations.create",
              "Transcribe speech in English", {200: "Transcription"}, "TranscriptionRequest", *_OPENAI_RUN),
    Operation("get", "/openai/v1/models", "openai.models.list", "List the models that this API can call",
              {200: "OpenAIModels"}, None, (), (), (401, 403, 429), "OpenAIError"),
    Operation("get", "/openai/v1/models/{model}", "openai.models.get",
              "Get a model by name, alias or version", {200: "OpenAIModel"}, None, (), (),
              (400, 401, 403, 404, 429), "OpenAIError"),
    Operation("get", "/anthropic/v1/models", "anthropic.models.list",
              "List the models that this API can call", {200: "AnthropicModels"}, None,
              ("limit:1000", "after_id", "before_id"), (), _COMPAT_READ, "AnthropicError"),
    Operation("get", "/anthropic/v1/models/{model}", "anthropic.models.get",
              "Get a model by name, alias or version", {200: "AnthropicModel"}, None, (), (), _COMPAT_READ,
              "AnthropicError"),
    Operation("post", "/anthropic/v1/messages", "anthropic.messages.create", "Create a message",
              {200: ANY_JSON}, "MessageRequest", *_ANTHROPIC_RUN),
    Operation("post", "/anthropic/v1/messages/count_tokens", "anthropic.messages.count_tokens",
              "Count the tokens of messages", {200: ANY_JSON}, "CountTokensRequest", *_ANTHROPIC_RUN),
)  # fmt: skip

OPERATIONS: Final = (*REPLICATE, *ADMIN, *COMPAT)
#: Ids of operations that need no token: a search finds only public models, a download URL is signed, and
#: people who sign in have no token yet.
OPEN: Final = frozenset(
    {
        *("search", "files.download", "monitoring.health", "monitoring.readiness"),
        *("admin.sign_in_methods", "admin.sessions.create"),
        *("admin.sign_in.provider", "admin.sign_in.provider.callback"),
    }
)
