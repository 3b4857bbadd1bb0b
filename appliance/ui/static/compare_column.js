// One column of compare.js: a model with its settings, the prediction that it runs, and what came of it.

import { _ } from "./texts.js";
import { api } from "./common.js";
import { fieldsOf, Inputs } from "./inputs.js";
import { ENDED, INTERVAL, openStream, percentOf, wordsOf } from "./prediction_follow.js";
import { filesOf, MEASURES, textOf, titleOf } from "./compare_summary.js";

const FEW = 4; // number of settings that are shown before "more settings"
const NAMES = {
  starting: _("starting"),
  processing: _("processing"),
  succeeded: _("succeeded"),
  failed: _("failed"),
  canceled: _("canceled"),
  aborted: _("aborted"),
};
let columnsMade = 0;
const schemas = new Map(); // name of a model -> promise of its fields

function fieldsOfModel(name) {
  if (!schemas.has(name)) {
    const found = api(`/v1/models/${name}`)
      .then((reply) => reply.json())
      .then((model) => fieldsOf(model.latest_version.openapi_schema));
    found.catch(() => schemas.delete(name));
    schemas.set(name, found);
  }
  return schemas.get(name);
}

export class Column {
  record = null; // the prediction as /admin/predictions/{id} has it
  run = null; // id of the prediction
  running = false;
  #number = 0;
  #prefix = `column-${(columnsMade += 1)}-`; // of the ids of the settings
  #turn = 0; // number of the prediction that is followed, so that earlier ones are not shown any more
  #given; // the last valid settings but the secrets
  #secrets; // the last valid secrets, which are only in memory
  #parts = []; // forms: the first settings, and the others
  #source = null; // the stream of the output
  #node = null; // the text that the stream appends to
  #arrived = "";
  #stopWanted = false;
  #wake = () => {};
  #failure = "";

  // `page` is the Comparison. `model` is the name of the model, `input` its settings, `secrets` those that are secret,
  // `run` the id of a prediction.
  constructor(page, number, { model, input = {}, secrets = {}, run = null }) {
    this.page = page;
    this.element = document.getElementById("column").content.firstElementChild.cloneNode(true);
    this.number = number;
    this.#given = input;
    this.#secrets = secrets;
    this.find(".remove").addEventListener("click", () => page.remove(this));
    this.#fillMenu(model);
    this.#build();
    this.#blank();
    if (run) void this.#follow(run);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  get number() {
    return this.#number;
  }

  set number(number) {
    this.#number = number;
    this.element.setAttribute("aria-label", _("Column {number}", { number }));
    this.find(".output").setAttribute("aria-label", _("Output of column {number}", { number }));
  }

  get model() {
    return this.find("select.model").value;
  }

  get kind() {
    return this.page.models.get(this.model)?.output ?? "data";
  }

  // The settings; the last valid ones while a field is not valid.
  get input() {
    return { ...this.openInput, ...this.secrets };
  }

  get openInput() {
    this.#read();
    return this.#given;
  }

  get secrets() {
    this.#read();
    return this.#secrets;
  }

  #read() {
    if (this.#parts.length === 0) return;
    try {
      const values = Object.entries(Object.assign({}, ...this.#parts.map((part) => part.values())));
      const fields = this.#parts.flatMap((part) => part.fields);
      const secret = new Set(fields.filter(({ kind }) => kind === "secret").map(({ name }) => name));
      this.#given = Object.fromEntries(values.filter(([name]) => !secret.has(name)));
      this.#secrets = Object.fromEntries(values.filter(([name]) => secret.has(name)));
    } catch {
      // the field says so when the column is run
    }
  }

  // Shows what is wrong with the settings; returns whether they can be sent.
  async valid() {
    await this.ready.catch(() => {}); // the API tells why it cannot run
    const control = this.#parts.map((part) => part.invalid()).find(Boolean);
    if (!control) return true;
    for (let each = control.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    control.reportValidity();
    return false;
  }

  async start(prompt, seed) {
    const turn = this.#begin();
    this.#status("starting", "");
    try {
      await Promise.all(this.#parts.map((part) => part.uploaded()));
      const served = this.page.models.get(this.model);
      if (served === undefined) throw new Error(_("{model} is not served: choose another model.", this));
      const input = { ...this.input, [served.prompt]: prompt };
      if (seed !== null && this.takes("seed")) input.seed = seed;
      const body = JSON.stringify({ input });
      const headers = { "content-type": "application/json" };
      const reply = await api(`/v1/models/${this.model}/predictions`, { method: "POST", headers, body });
      const record = await reply.json();
      if (turn !== this.#turn) return;
      this.run = record.id;
    } catch (error) {
      if (turn === this.#turn) this.#fail(error.message);
      return;
    }
    this.page.started();
    if (this.#stopWanted) void this.stop();
    await this.#follow(this.run);
  }

  async stop() {
    if (!this.running) return;
    this.#stopWanted = true;
    if (this.run === null) return; // `start` does it when the prediction has an id
    try {
      await api(`/admin/predictions/${this.run}/cancel`, { method: "POST" });
    } catch (error) {
      this.find(".said").textContent = error.message;
    }
    this.#wake();
  }

  takes(name) {
    return this.#parts.some((part) => part.fields.some((field) => field.name === name));
  }

  // Stops following the prediction, which runs on.
  leave() {
    this.#turn += 1;
    this.#close();
    this.#wake();
  }

  // Browsers have six connections to a server for all of their pages, so hidden pages close theirs.
  seen(visible) {
    if (visible) this.#wake();
    else this.#close();
  }

  // -- the form

  #fillMenu(model) {
    const menu = this.find("select.model");
    const groups = { text: _("Text"), files: _("Images and other files"), data: _("Other") };
    for (const [kind, label] of Object.entries(groups)) {
      const names = [...this.page.models.values()].filter((each) => each.output === kind);
      if (names.length === 0) continue;
      const group = Object.assign(document.createElement("optgroup"), { label });
      group.append(...names.map(({ name }) => new Option(name, name)));
      menu.append(group);
    }
    if (!this.page.models.has(model)) menu.append(new Option(_("{model} (not served)", { model }), model));
    menu.value = model;
    menu.addEventListener("change", () => {
      if (this.run !== null) this.page.leaving();
      this.leave();
      this.record = this.run = null;
      this.#given = {};
      this.#secrets = {};
      this.#build();
      this.#blank();
      this.page.changed();
    });
  }

  // `ready` ends when the form is built; it fails if the model is not served.
  #build() {
    this.#parts = [];
    this.ready = this.#buildForm(this.model);
    this.ready.catch((error) => {
      if (this.run === null) this.#fail(error.message);
    });
  }

  async #buildForm(name) {
    if (!this.page.models.has(name)) throw new Error(_("{model} is not served: choose another model.", this));
    const all = await fieldsOfModel(name);
    if (name !== this.model) return;
    const prompt = this.page.models.get(name).prompt;
    const fields = all.filter((field) => field.name !== prompt).sort((one, other) => other.required - one.required);
    const required = fields.filter((field) => field.required).length;
    const few = fields.length <= FEW + 2 ? fields.length : Math.max(FEW, required);
    const options = { prefix: this.#prefix, changed: () => this.#settingsChanged() };
    const values = { ...this.#given, ...this.#secrets };
    this.#parts = [
      new Inputs(this.find(".few"), fields.slice(0, few), values, options),
      new Inputs(this.find(".rest"), fields.slice(few), values, options),
    ];
    this.find(".more").hidden = fields.length === few;
    this.find(".settings").hidden = fields.length === 0;
    if (required > 0) this.find(".settings").open = true;
    if (Object.keys(this.secrets).length > 0) this.page.changed(); // an address with a secret loses it
    this.page.update();
  }

  #settingsChanged() {
    this.page.changed();
  }

  // Says how many settings are not the default; `seeded`: whether there is a seed for all columns.
  describe(seeded) {
    if (this.#parts.length === 0) return;
    const count = Object.keys(this.input).length;
    const said = count === 0 ? "" : _("({count} changed)", { count });
    this.find(".settings summary span").textContent = seeded && !this.takes("seed") ? _("(has no seed)") : said;
  }

  // -- the prediction

  #begin() {
    this.leave();
    this.record = this.run = null;
    this.#stopWanted = false;
    this.#setRunning(true);
    this.#blank();
    return this.#turn;
  }

  async #follow(id) {
    this.run = id;
    this.#setRunning(true);
    const turn = this.#turn;
    while (turn === this.#turn) {
      if (!document.hidden) {
        const record = await this.#fetch(id);
        if (turn !== this.#turn) return;
        if (record === null) return;
        if (record && this.#show(record)) return;
      }
      await this.#pause();
    }
  }

  // Returns the prediction, undefined if the appliance does not answer now, or null if it refuses to say.
  async #fetch(id) {
    try {
      return await (await api(`/admin/predictions/${id}`)).json();
    } catch (error) {
      if (error.status === undefined || error.status >= 500) return undefined;
      if (id === this.run) this.#fail(error.message);
      return null;
    }
  }

  #pause() {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, INTERVAL);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #listen(record) {
    const url = record.urls.stream;
    if (this.#source !== null || !url || !this.page.models.get(record.model)?.streams) return;
    const source = openStream(url);
    this.#source = source;
    this.#node = document.createTextNode("");
    this.#arrived = "";
    source.addEventListener("output", ({ data }) => {
      if (this.#arrived === "") requestAnimationFrame(() => this.#write());
      this.#arrived += data;
    });
    source.addEventListener("done", () => {
      this.#close();
      this.#wake();
    });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED && this.#source === source) this.#close();
    });
  }

  #write() {
    const output = this.find(".output");
    if (this.#node === null) return;
    const following = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
    if (this.#node.parentNode !== output) output.replaceChildren(this.#node);
    this.#node.appendData(this.#arrived);
    this.#arrived = "";
    if (following) output.scrollTop = output.scrollHeight;
  }

  #close() {
    this.#source?.close();
    this.#source = this.#node = null;
    this.#arrived = "";
  }

  // -- what is shown

  // Shows the prediction; returns whether it has ended.
  #show(record) {
    this.record = record;
    const ended = ENDED.has(record.status);
    const started = record.status === "starting" && this.#node?.length > 0;
    this.#status(started ? "processing" : record.status, wordsOf(record, ended));
    this.#progress(ended ? null : percentOf(record.logs ?? ""));
    this.#numbers(record);
    if (ended) {
      this.#close();
      this.#output(record);
      this.#setRunning(false);
      this.page.ended();
    } else {
      this.#listen(record);
    }
    return ended;
  }

  #status(status, words) {
    const badge = this.find(".line .badge");
    badge.className = `badge ${status}`;
    badge.textContent = NAMES[status] ?? status;
    this.find(".said").textContent = words;
    this.find(".line").title = words;
  }

  #blank() {
    this.#failure = "";
    const badge = this.find(".line .badge");
    badge.className = "badge plain";
    badge.textContent = _("not run yet");
    this.find(".said").textContent = "";
    this.#progress(null);
    this.#numbers(null);
    const output = this.find(".output");
    output.classList.remove("files");
    output.replaceChildren();
  }

  #fail(message) {
    this.#close();
    this.#failure = message;
    this.#status("failed", "");
    this.#progress(null);
    this.find(".output").replaceChildren(wrong(message));
    this.#setRunning(false);
    this.page.ended();
  }

  get failure() {
    return this.#failure || this.record?.error || "";
  }

  #setRunning(running) {
    this.running = running;
    this.find("select.model").disabled = running;
    this.page.update();
  }

  #progress(percent) {
    const bar = this.find("progress");
    bar.classList.toggle("on", percent !== null);
    bar.value = percent ?? 0;
  }

  #numbers(record) {
    const text = this.kind === "text";
    const priced = this.page.currency !== null;
    const shown = MEASURES.filter((each) => (!each.text || text) && (!each.priced || priced));
    this.find(".numbers").replaceChildren(
      ...shown.filter((each) => !each.tableOnly).map((each) => {
        const row = document.createElement("div");
        const value = (record && each.text_of(record)) || "–";
        row.append(element("dt", titleOf(each, this.page.currency)), element("dd", value));
        return row;
      }),
    );
    const link = this.find(".prediction");
    link.hidden = record === null;
    if (record !== null) link.href = new URL(`p/${record.id}`, document.baseURI).href;
  }

  #output(record) {
    const output = this.find(".output");
    const said = record.error ? [wrong(record.error)] : [];
    if (record.data_removed) said.push(element("p", _("The data of this prediction was removed.")));
    const files = this.kind === "text" ? [] : filesOf(record.output);
    output.classList.toggle("files", files.length > 0);
    if (files.length > 0) output.replaceChildren(...said, ...files.map((file) => this.#file(file)));
    else if (this.kind === "data" && record.output !== null && record.output !== undefined) {
      output.replaceChildren(...said, element("pre", JSON.stringify(record.output, null, 2)));
    } else {
      const text = textOf(record.output);
      if (said.length > 0 || output.textContent !== text) output.replaceChildren(...said, text);
    }
  }

  #file(file) {
    if (file.url === null) {
      const options = { href: file.name, rel: "noopener noreferrer", target: "_blank" };
      return Object.assign(element("a", file.name), options);
    }
    if (file.kind === "audio" || file.kind === "video") {
      return Object.assign(document.createElement(file.kind), { controls: true, src: file.url });
    }
    if (file.kind !== "image") return Object.assign(element("a", file.name), { href: file.url, download: file.name });
    const button = Object.assign(document.createElement("button"), { type: "button", className: "picture" });
    const alt = _("Image of column {number}: {name}", { number: this.number, name: file.name });
    button.append(Object.assign(document.createElement("img"), { src: file.url, alt }));
    button.title = _("Enlarge");
    button.addEventListener("click", () => this.page.enlarge(this, file.url, alt));
    return button;
  }
}

function wrong(message) {
  const said = Object.assign(element("p", message), { className: "wrong" });
  said.setAttribute("role", "alert");
  return said;
}

function element(name, text) {
  return Object.assign(document.createElement(name), { textContent: text });
}
