"""The form of a model: a component for each of its inputs, and what happens when it is run."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr
from markupsafe import Markup

from appliance.domain.errors import ApplianceError
from appliance.ui import layout, markup, output, session
from appliance.ui.client import Caller
from appliance.ui.fields import Field, Widget, fields, filled_in
from appliance.ui.output import RenderedOutput
from appliance.ui.snippets import LocalFile
from appliance.ui.watcher import Seen, Watcher

#: What is said before anything has run.
_NOTHING_YET: Final = markup.note("The output of the model appears here.")
_FILES: Final = frozenset({Widget.FILE, Widget.FILES})
#: What a prediction waits for -> how that is said.
_WAITS: Final = {
    "slot": "waiting for its turn",
    "load": "waiting until the model is loaded",
    "room": "waiting until there is room for the model",
}
_LINES: Final = 16  # of text that is seen without scrolling; fixed, so that nothing moves while it comes


class ModelForm:
    """The components of one version's inputs. Made inside of a page's blocks."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """``document`` is the version's OpenAPI document. Builds the components where it is called."""
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
        """All of them, in the order of ``values``."""
        return [part for field in self.fields for part in self._inputs[field.name]]

    def filled_in(self, values: Sequence[Any]) -> dict[str, Any]:
        """The input that the values of ``components`` mean; files that were picked are of type LocalFile.

        Raises:
            InvalidInput: names what cannot be read.
        """
        rest = list(values)
        given = []
        for field in self.fields:
            own = [rest.pop(0) for _ in self._inputs[field.name]]
            given.append(_picked(field, *own) if field.widget in _FILES else own[0])
        return filled_in(self.fields, given)

    def shown(self, input: Mapping[str, Any]) -> list[Any]:
        """``input`` as values of ``components``."""
        values: list[Any] = []
        for field in self.fields:
            value = input.get(field.name, field.default)
            if field.widget in _FILES:
                lines = value if isinstance(value, list) else [value] if value else []
                values += [None, "\n".join(str(line) for line in lines)]
            else:
                values.append(field.shown(value))
        return values


class Result:
    """Where the output of a model appears."""

    def __init__(self, kind: RenderedOutput, *, linked: bool) -> None:
        """Builds the components where it is called; ``linked``: with a link to the prediction."""
        self.kind = kind
        self._linked = linked
        self.status = gr.HTML(_NOTHING_YET, elem_classes=["run-status"], apply_default_css=False)
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
            elem_id="media", apply_default_css=False, visible=kind is not RenderedOutput.TEXT
        )
        self.data = gr.JSON(
            label="Output", elem_id="data", visible=kind is RenderedOutput.DATA, max_height=420
        )
        with gr.Accordion("Logs", open=False):
            self.logs = gr.Textbox(
                show_label=False, lines=10, max_lines=10, interactive=False, elem_id="logs", container=False
            )

    @property
    def components(self) -> list[gr.components.Component]:
        """All of them, in the order of ``shown``."""
        return [self.status, self.text, self.media, self.data, self.logs]

    def shown(self, seen: Seen, before: list[Any]) -> list[Any]:
        """How a prediction stands, for each component; ``before`` is what was shown last, and is updated."""
        text = output.text_of(seen.output) if self.kind is RenderedOutput.TEXT else ""
        made = "" if self.kind is RenderedOutput.TEXT else output.files(seen.output)
        data = seen.output if self.kind is RenderedOutput.DATA and seen.over else None
        now = [_status(seen, linked=self._linked), text, made, data, seen.record.get("logs") or ""]
        changed = [
            gr.skip() if value == old else value for value, old in zip(now, before or [None] * 5, strict=True)
        ]
        before[:] = now
        return changed


async def run(
    form: ModelForm, result: Result, spec: str, values: Sequence[Any], request: gr.Request
) -> AsyncIterator[tuple[str | None, list[Any]]]:
    """Run ``owner/name`` or ``owner/name:version`` with what is filled in.

    Gives the id of the prediction, None once it is over, and what to show.

    Raises:
        ApplianceError: it is refused.
    """
    caller = session.of(request).caller
    given = await _uploaded(form.filled_in(values), caller)
    created = await caller.post("/v1/predictions", {"version": spec, "input": given})
    before: list[Any] = []
    async for seen in Watcher(caller, created).seen():
        yield None if seen.over else created["id"], result.shown(seen, before)


def refused(error: ApplianceError) -> Markup:
    """Why nothing runs, as HTML for the status of a result."""
    message = layout.message(error)
    text = Markup(message.message)  # noqa: S704 - HTML already
    return Markup('<p class="wrong" role="alert">{}: {}</p>').format(message.title, text)


@layout.show_errors
async def cancel(id: str | None, request: gr.Request) -> None:
    """Cancel the prediction that runs; it says so itself."""
    if id is not None:
        await session.of(request).caller.post(f"/v1/predictions/{id}/cancel")


def _components(field: Field) -> tuple[gr.components.Component, ...]:
    label = field.title + (" *" if field.required else "")
    common: dict[str, Any] = {
        "label": label,
        "info": field.description or None,
        "elem_id": f"input-{field.name}",
    }
    default = field.shown(field.default)
    match field.widget:
        case Widget.TEXT:
            return (gr.Textbox(default or "", lines=3, max_lines=12, **common),)
        case Widget.LINE:
            return (gr.Textbox(default or "", lines=1, max_lines=6, **common),)
        case Widget.SECRET:
            return (gr.Textbox(default or "", type="password", **common),)
        case Widget.LIST:
            return (gr.Textbox(default or "", lines=2, max_lines=12, placeholder="one per line", **common),)
        case Widget.JSON:
            return (gr.Textbox(default or "", lines=2, max_lines=12, placeholder="JSON", **common),)
        case Widget.CHOICE:
            choices = [(str(choice), choice) for choice in field.choices]
            return (gr.Dropdown(choices, value=default, **common),)
        case Widget.SWITCH:
            return (gr.Checkbox(bool(default), **common),)
        case Widget.SLIDER | Widget.NUMBER:
            return (_number(field, common),)
    return _file(field, label)


def _number(field: Field, common: dict[str, Any]) -> gr.components.Component:
    if field.default is None:  # a gr.Number that nobody touches says 0
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


def _file(field: Field, label: str) -> tuple[gr.components.Component, ...]:
    """A file is picked, or its address is given: earlier predictions and examples have those."""
    many = field.widget is Widget.FILES
    picked = gr.File(
        label=label,
        file_count="multiple" if many else "single",
        height=120,
        elem_id=f"input-{field.name}",
    )
    address = gr.Textbox(
        placeholder="or addresses, one per line" if many else "or an address: https://…",
        show_label=False,
        lines=1,
        max_lines=4 if many else 1,
        info=field.description or None,
        elem_id=f"input-{field.name}-address",
    )
    return picked, address


def _picked(field: Field, picked: Any, addresses: str | None) -> Any:
    paths = picked if isinstance(picked, list) else [] if picked is None else [picked]
    lines = [line.strip() for line in (addresses or "").split("\n") if line.strip()]
    found = [*map(LocalFile, paths), *lines]
    if field.widget is Widget.FILES:
        return found or None
    return found[0] if found else None


async def _uploaded(value: Any, caller: Caller) -> Any:
    """``value`` with the address of an upload in the place of every file that was picked."""
    match value:
        case LocalFile():
            kind = mimetypes.guess_type(value.name)[0] or "application/octet-stream"
            try:
                with Path(value.path).open("rb") as content:  # noqa: ASYNC230 - a file of this machine
                    upload = await caller.upload(value.name, content, kind)
            except OSError as error:
                raise ApplianceError(f"{value.name} is not here any more; pick it again") from error
            return upload["urls"]["get"]
        case Mapping():
            return {key: await _uploaded(part, caller) for key, part in value.items()}
        case list():
            return [await _uploaded(part, caller) for part in value]
    return value


def _status(seen: Seen, *, linked: bool) -> Markup:
    return markup.render(
        "run_status.html",
        status=seen.status,
        words=_words(seen),
        percent=None if seen.over else output.progress(seen.record.get("logs") or ""),
        linked=linked,
        id=seen.record["id"],
        error=seen.record.get("error"),
    )


def _words(seen: Seen) -> str:
    """Return the status text, the most important part first, because the line may be cut."""
    metrics = seen.record.get("metrics") or {}
    if seen.over:
        parts = []
        if "predict_time" in metrics:
            parts.append(f"{metrics['predict_time']:.2f} s")
        if metrics.get("output_token_count"):
            parts.append(f"{metrics['output_token_count']:,} tokens")
        if metrics.get("cold_start", 0) >= 0.1:
            parts.append(f"cold start {metrics['cold_start']:.1f} s")
        return " · ".join(parts)
    waits = _WAITS.get(metrics.get("waits_for", "")) if seen.status == "starting" else None
    if waits is None:
        return f"{seen.seconds:.0f} s"
    expected = seen.model["load_seconds"] if seen.model is not None else None
    about = f" of about {expected:.0f}" if expected and metrics["waits_for"] == "load" else ""
    return f"{seen.seconds:.0f} s{about} · {waits}, at place {metrics['queue_position']}"
