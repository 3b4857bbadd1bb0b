"""The input form of a model, the display of a result, and the function that runs the model."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr
from markupsafe import Markup

from appliance.domain.errors import ApplianceError
from appliance.ui import gradio_page, markup, output, output_views
from appliance.ui.client import Caller
from appliance.ui.fields import FormField, Widget, fields, read_input
from appliance.ui.output import RenderedOutput
from appliance.ui.snippets import LocalFile
from appliance.ui.watcher import Snapshot, Watcher

_BEFORE_FIRST_RUN: Final = markup.note("The output of the model appears here.")
_FILES: Final = frozenset({Widget.FILE, Widget.FILES})
#: Text for each value of the metric ``waits_for``.
_WAITS: Final = {
    "slot": "waiting for its turn",
    "load": "waiting until the model is loaded",
    "room": "waiting for memory for the model",
}
_LINES: Final = 16  # fixed height of the output, so that the page does not move while text arrives


class ModelForm:
    """The form components for the inputs of one version."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Add the components to the open Gradio layout; ``document`` is the version's OpenAPI document."""
        self.fields = fields(document)
        self._inputs: dict[str, tuple[gr.components.Component, ...]] = {}
        for field in self.fields:
            if not field.folded:
                self._inputs[field.name] = _components(field)
        folded = [field for field in self.fields if field.folded]
        if folded:
            with gr.Accordion(f"{len(folded)} more inputs", open=False):
                for field in folded:
                    self._inputs[field.name] = _components(field)
        if not self.fields:
            gr.HTML(markup.note("This model takes no input."), apply_default_css=False)

    @property
    def components(self) -> list[gr.components.Component]:
        """All components, in the order in which Gradio passes their values to event handlers."""
        return [part for field in self.fields for part in self._inputs[field.name]]

    def read_input(self, values: Sequence[Any]) -> dict[str, Any]:
        """Convert ``values``, the values of ``components``, to the input of a prediction.

        Files uploaded in the form are ``LocalFile`` objects in the result.

        Raises:
            InvalidInput: lists all fields with invalid values.
        """
        rest = list(values)
        given = []
        for field in self.fields:
            own = [rest.pop(0) for _ in self._inputs[field.name]]
            given.append(_files_of(field, *own) if field.widget in _FILES else own[0])
        return read_input(self.fields, given)

    def values_of(self, input: Mapping[str, Any]) -> list[Any]:
        values: list[Any] = []
        for field in self.fields:
            value = input.get(field.name, field.default)
            if field.widget in _FILES:
                lines = value if isinstance(value, list) else [value] if value else []
                values += [None, "\n".join(str(line) for line in lines)]
            else:
                values.append(field.to_widget(value))
        return values


class Result:
    """The components that show the status, output and logs of a prediction."""

    def __init__(self, kind: RenderedOutput) -> None:
        """Add the components to the open Gradio layout."""
        self.kind = kind
        self.status = gr.HTML(_BEFORE_FIRST_RUN, elem_classes=["run-status"], apply_default_css=False)
        self.text = gr.Textbox(
            label="Output",
            lines=_LINES,
            max_lines=_LINES,
            interactive=False,
            buttons=["copy"],
            elem_id="output",
            visible=kind is RenderedOutput.TEXT,
        )
        self.media = gr.HTML(
            elem_id="media",
            elem_classes=["files"] if kind is RenderedOutput.FILES else [],
            apply_default_css=False,
            visible=kind is not RenderedOutput.TEXT,
        )
        with gr.Accordion("Logs", open=False):
            self.logs = gr.Textbox(
                show_label=False, lines=10, max_lines=10, interactive=False, elem_id="logs", container=False
            )

    @property
    def components(self) -> list[gr.components.Component]:
        """All components, in the order in which ``updates`` returns their updates."""
        return [self.status, self.text, self.media, self.logs]

    def updates(self, snapshot: Snapshot, before: list[Any]) -> list[Any]:
        """Return an update for each component; components whose value is unchanged get ``gr.skip()``.

        ``before`` is a list for this method's own use between calls for one prediction. It is empty at the
        first call.
        """
        text = output.text_of(snapshot.output) if self.kind is RenderedOutput.TEXT else ""
        made = "" if self.kind is RenderedOutput.TEXT else self._media(snapshot)
        now = [_status(snapshot), text, made, snapshot.record.get("logs") or ""]
        pairs = zip(now, before or [None] * len(now), strict=True)
        updates = [gr.skip() if value == old else value for value, old in pairs]
        before[:] = now
        return updates

    def _media(self, snapshot: Snapshot) -> Markup:
        if self.kind is RenderedOutput.FILES or not snapshot.ended:
            return output.files(snapshot.output)
        return Markup() if snapshot.output is None else output_views.view(snapshot.output)


async def run(
    form: ModelForm, result: Result, spec: str, values: Sequence[Any], request: gr.Request
) -> AsyncIterator[tuple[str | None, list[Any]]]:
    """Run ``owner/name`` or ``owner/name:version`` with the values of the form's components.

    Each item has the id of the prediction (None once the prediction has ended) and the updates of the result.

    Raises:
        ApplianceError: the API refuses the prediction.
    """
    caller = gradio_page.session_of(request).caller
    given = await _uploaded(form.read_input(values), caller)
    created = await caller.post("/v1/predictions", {"version": spec, "input": given})
    async for shown in follow(result, created, caller):
        yield shown


async def follow(
    result: Result, record: dict[str, Any], caller: Caller
) -> AsyncIterator[tuple[str | None, list[Any]]]:
    """Show a prediction until it ends; ``record`` is the prediction as the API returns it.

    Each item has the id of the prediction (None once the prediction has ended) and the updates of the result.
    """
    before: list[Any] = []
    async for snapshot in Watcher(caller, record).snapshots():
        yield None if snapshot.ended else record["id"], result.updates(snapshot, before)


def error_status(error: ApplianceError) -> Markup:
    """Return the HTML of a failed run's status line."""
    message = gradio_page.message(error)
    text = Markup(message.message)  # noqa: S704 - HTML already
    return Markup('<p class="wrong" role="alert">{}: {}</p>').format(message.title, text)


@gradio_page.show_errors
async def cancel(id: str | None, request: gr.Request) -> None:
    if id is not None:
        await gradio_page.session_of(request).caller.post(f"/v1/predictions/{id}/cancel")


def _components(field: FormField) -> tuple[gr.components.Component, ...]:
    label = field.title + (" *" if field.required else "")
    if field.widget in _FILES:
        return _file(field, label)
    common = {"label": label, "info": field.description or None, "elem_id": f"input-{field.name}"}
    return (_component(field, common),)


def _component(field: FormField, common: dict[str, Any]) -> gr.components.Component:
    default = field.to_widget(field.default)
    match field.widget:
        case Widget.CHOICE:
            return gr.Dropdown([(str(choice), choice) for choice in field.choices], value=default, **common)
        case Widget.SWITCH:
            return gr.Checkbox(bool(default), **common)
        case Widget.SLIDER | Widget.NUMBER:
            return _number(field, common)
        case Widget.SECRET:
            return gr.Textbox(default or "", type="password", **common)
    lines, most, placeholder = {
        Widget.TEXT: (3, 12, None),
        Widget.LIST: (2, 12, "one per line"),
        Widget.JSON: (2, 12, "JSON"),
    }.get(field.widget, (1, 6, None))
    return gr.Textbox(default or "", lines=lines, max_lines=most, placeholder=placeholder, **common)


def _number(field: FormField, common: dict[str, Any]) -> gr.components.Component:
    if field.default is None:  # an untouched gr.Number has the value 0
        wanted = "a whole number" if field.integer else "a number"
        return gr.Textbox("", lines=1, max_lines=1, placeholder=wanted, **common)
    if field.widget is Widget.SLIDER:
        assert field.minimum is not None
        assert field.maximum is not None
        return gr.Slider(field.minimum, field.maximum, value=field.default, step=field.step, **common)
    precision = 0 if field.integer else None
    return gr.Number(
        field.default, precision=precision, minimum=field.minimum, maximum=field.maximum, **common
    )


def _file(field: FormField, label: str) -> tuple[gr.components.Component, ...]:
    """Return an upload field and a text field for URLs: inputs of earlier predictions are URLs."""
    many = field.widget is Widget.FILES
    upload = gr.File(
        label=label,
        file_count="multiple" if many else "single",
        height=120,
        elem_id=f"input-{field.name}",
    )
    url = gr.Textbox(
        placeholder="or URLs, one per line" if many else "or a URL: https://…",
        show_label=False,
        lines=1,
        max_lines=4 if many else 1,
        info=field.description or None,
        elem_id=f"input-{field.name}-address",
    )
    return upload, url


def _files_of(field: FormField, uploads: Any, urls: str | None) -> Any:
    paths = uploads if isinstance(uploads, list) else [] if uploads is None else [uploads]
    lines = [line.strip() for line in (urls or "").split("\n") if line.strip()]
    found = [*map(LocalFile, paths), *lines]
    if field.widget is Widget.FILES:
        return found or None
    return found[0] if found else None


async def _uploaded(value: Any, caller: Caller) -> Any:
    """Upload the local files in ``value`` to the API; return ``value`` with URLs in place of the files."""
    match value:
        case LocalFile():
            kind = mimetypes.guess_type(value.name)[0] or "application/octet-stream"
            try:
                with Path(value.path).open("rb") as content:  # noqa: ASYNC230 - a file of this machine
                    upload = await caller.upload(value.name, content, kind)
            except OSError as error:
                raise ApplianceError(f"the upload {value.name} was removed: choose the file again") from error
            return upload["urls"]["get"]
        case Mapping():
            return {key: await _uploaded(part, caller) for key, part in value.items()}
        case list():
            return [await _uploaded(part, caller) for part in value]
    return value


def _status(snapshot: Snapshot) -> Markup:
    return markup.render(
        "run_status.html",
        status=snapshot.status,
        words=_status_text(snapshot),
        percent=None if snapshot.ended else output.progress(snapshot.record.get("logs") or ""),
        error=snapshot.record.get("error"),
    )


def _status_text(snapshot: Snapshot) -> str:
    """Return the text of the status line, most important part first: narrow pages cut the line off."""
    metrics = snapshot.record.get("metrics") or {}
    if snapshot.ended:
        parts = []
        if "predict_time" in metrics:
            parts.append(f"{metrics['predict_time']:.2f} s")
        if metrics.get("output_token_count"):
            parts.append(f"{metrics['output_token_count']:,} tokens")
        if metrics.get("cold_start", 0) >= 0.1:
            parts.append(f"cold start {metrics['cold_start']:.1f} s")
        return " · ".join(parts)
    waits = _WAITS.get(metrics.get("waits_for", "")) if snapshot.status == "starting" else None
    if waits is None:
        return f"{snapshot.seconds:.0f} s"
    expected = snapshot.model.load_seconds if snapshot.model is not None else None
    about = f" of about {expected:.0f}" if expected and metrics["waits_for"] == "load" else ""
    return f"{snapshot.seconds:.0f} s{about} · {waits}, position {metrics['queue_position']}"
