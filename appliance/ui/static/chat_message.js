// The elements of one message.

import { author } from "./chat_export.js";
import { copy, showMarkdown } from "./chat_markdown.js";
import { _ } from "./texts.js";

const ENDS = {
  length: () => _("The answer ended at the maximum number of tokens."),
  content_filter: () => _("The answer was cut off by a filter."),
};
const STATES = {
  stopped: () => _("You stopped this answer."),
  interrupted: () => _("This answer is incomplete: the connection was lost, or the page was left while it was written."),
};

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className !== "") element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

function button(text, clicked, label = "") {
  const made = make("button", "", text);
  made.type = "button";
  if (label !== "") made.setAttribute("aria-label", label);
  made.addEventListener("click", () => clicked(made));
  return made;
}

// What a view shows of a message that has ended. Texts are compared, not copied: this must be cheap.
function factsOf(message, alternatives, last, busy) {
  const { state, text, reasoning, error, finish_reason: reason, prediction, metrics, tool_calls: calls } = message;
  return [message, state, text, reasoning, error, reason, prediction, metrics, calls, last, busy, ...alternatives];
}

// The view of a message. `actions` has the functions edit(message, text), which returns whether the message was sent,
// regenerate(message), choose(message) and answerTools(message, results), and whether the user may run models as
// `mayRun`.
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.facts = []; // what the elements show
    this.element = make("li", `message ${message.role}`);
    this.element.dataset.id = message.id;
    this.author = make("h2", "author");
    this.reasoning = make("details", "reasoning");
    this.reasoning.append(make("summary", "", _("Reasoning")), (this.thought = make("div", "markdown")));
    this.media = make("div", "media");
    this.text = make("div", message.role === "assistant" ? "markdown" : "plain");
    this.tools = make("div", "tools");
    this.waiting = make("p", "note waiting");
    this.problem = make("p", "problem");
    this.under = make("div", "under");
    this.element.append(
      ...[this.author, this.media, this.reasoning, this.text, this.tools, this.waiting, this.problem, this.under],
    );
    this.#showMedia();
  }

  // `alternatives` are the message and its alternatives; `last` tells whether the message is the last one.
  show(message, { alternatives, last, busy, waiting }) {
    this.message = message;
    const streaming = message.state === "streaming";
    const facts = streaming ? ["streaming"] : factsOf(message, alternatives, last, busy);
    const same = facts.length === this.facts.length && facts.every((fact, number) => fact === this.facts[number]);
    this.facts = facts;
    if (same && !streaming) return; // this is called for every frame of an answer
    this.author.textContent = author(message);
    this.reasoning.hidden = !message.reasoning;
    if (message.reasoning) showMarkdown(this.thought, message.reasoning);
    if (message.role === "assistant") showMarkdown(this.text, message.text);
    else this.text.textContent = message.text;
    this.waiting.hidden = !(streaming && message.text === "" && !message.tool_calls?.length);
    this.waiting.textContent = waiting || _("Waiting for the model");
    const problem = message.error ?? STATES[message.state]?.() ?? ENDS[message.finish_reason]?.() ?? "";
    this.problem.hidden = problem === "";
    this.problem.textContent = problem;
    this.problem.classList.toggle("failed", message.state === "failed");
    this.element.setAttribute("aria-busy", String(streaming));
    if (!same) {
      this.#showTools(last && !busy);
      this.#showUnder(alternatives, streaming, busy);
    }
    if (streaming && message.tool_calls) this.#showTools(false);
  }

  #showMedia() {
    for (const { name, url } of this.message.images ?? []) {
      const image = make("img");
      image.src = url;
      image.alt = name;
      this.media.append(image);
    }
    for (const { name, text } of this.message.files ?? []) {
      const file = make("details");
      const content = make("pre", "text", text);
      content.tabIndex = 0;
      file.append(make("summary", "", name), content);
      this.media.append(file);
    }
    this.media.hidden = this.media.children.length === 0;
  }

  #showTools(open) {
    const calls = (this.message.tool_calls ?? []).filter(Boolean);
    const form = make("form");
    this.tools.replaceChildren(form);
    this.tools.hidden = calls.length === 0;
    for (const call of calls) {
      const content = make("pre", "text", indented(call.arguments));
      content.tabIndex = 0;
      form.append(make("p", "call", _("The model calls the tool {name} with", { name: call.name })), content);
      if (open && this.actions.mayRun) {
        const label = make("label", "", _("Result of {name}", { name: call.name }));
        const area = make("textarea");
        area.name = call.id;
        area.rows = 2;
        label.append(area);
        form.append(label);
      }
    }
    if (calls.length === 0 || !open || !this.actions.mayRun) return;
    const send = make("button", "primary", _("Send the results"));
    form.append(send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const results = calls.map(({ id }) => ({ id, text: form.elements.namedItem(id).value }));
      this.actions.answerTools(this.message, results);
    });
  }

  #showUnder(alternatives, streaming, busy) {
    this.under.replaceChildren();
    const { message, actions } = this;
    const here = alternatives.findIndex(({ id }) => id === message.id);
    if (alternatives.length > 1) this.under.append(this.#branches(alternatives, here, busy));
    if (streaming) return;
    if (message.text !== "") this.under.append(button(_("Copy"), (made) => copy(message.text, made)));
    if (actions.mayRun && !busy) {
      if (message.role === "user") this.under.append(button(_("Edit"), () => this.#edit()));
      if (message.role === "assistant") this.under.append(button(_("Regenerate"), () => actions.regenerate(message)));
    }
    if (message.prediction) {
      const link = make("a", "", _("Open the prediction"));
      link.href = new URL(`p/${message.prediction}`, document.baseURI);
      this.under.append(link);
    }
    const measured = figures(message.metrics ?? {});
    if (measured !== "") this.under.append(make("span", "note", measured));
  }

  #branches(alternatives, here, busy) {
    const group = make("span", "branches");
    const at = (step) => {
      const target = alternatives[here + step];
      const label = step < 0 ? _("Show the previous version") : _("Show the next version");
      const made = button(step < 0 ? "‹" : "›", () => this.actions.choose(target), label);
      made.disabled = target === undefined || busy;
      return made;
    };
    const count = make("span", "", _("{number} of {count}", { number: here + 1, count: alternatives.length }));
    group.append(at(-1), count, at(1));
    return group;
  }

  #edit() {
    const form = make("form", "edit");
    const area = make("textarea");
    area.value = this.message.text;
    area.rows = Math.min(12, area.value.split("\n").length + 1);
    area.setAttribute("aria-label", _("Edited message"));
    const send = make("button", "primary", _("Send"));
    const close = () => {
      form.replaceWith(this.text);
      this.under.hidden = false;
      this.under.querySelector("button")?.focus();
    };
    const buttons = make("div", "actions");
    buttons.append(send, button(_("Cancel"), close));
    form.append(area, buttons);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.actions.edit(this.message, area.value)) close();
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
    });
    this.text.replaceWith(form);
    this.under.hidden = true;
    area.focus();
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it is still arriving, or the model made a mistake
  }
}

// Tokens and speed of an answer, as text.
function figures({ input_tokens: read, output_tokens: written, time_to_first_token: first, seconds }) {
  const parts = [];
  if (written !== undefined) parts.push(_("{read} tokens read, {written} written", { read, written }));
  if (first !== undefined) parts.push(_("first token after {first} s", { first: first.toFixed(first < 10 ? 2 : 1) }));
  if (written > 1 && seconds > 0) {
    parts.push(_("{speed} tokens/s", { speed: ((written - 1) / seconds).toFixed(1) }));
  }
  return parts.join(" · ");
}
