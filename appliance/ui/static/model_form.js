// The form of a model's page. The server has made its controls (model_form.html); this reads and fills them, uploads
// files, records sound, and keeps what was entered until the browser's tab is closed.

import { _ } from "./texts.js";
import { keepForTab, made, parsed, same, shown, upload, valuesOf } from "./inputs.js";

const FILES = ["file", "files"];

export class ModelForm {
  uploads = {}; // names of files by the URL of their upload
  #sending = new Set();
  #first; // the texts of the controls when the page was opened
  #draft; // key of what is kept

  // `fields` are those of fields.py. `restored`: whether what was entered before is shown again.
  constructor(form, fields, { draft, restored }) {
    this.form = form;
    this.fields = fields.map((field) => ({ ...field, kind: field.widget === "slider" ? "number" : field.widget }));
    this.#draft = draft;
    for (const field of this.fields) this.#prepare(field);
    this.#first = this.#texts();
    if (restored) this.#restore();
    form.addEventListener("input", ({ target }) => this.#changed(target));
  }

  // The values of the inputs, without those that are equal to their default. Throws an error if one is not valid.
  values() {
    return valuesOf(this.fields, (field) => this.#read(field));
  }

  // The values that can be read, for example programs.
  readable() {
    const right = this.fields.filter((field) => this.#problemOf(field) === "");
    return valuesOf(right, (field) => this.#read(field));
  }

  // Shows what is wrong beside each control; returns whether the inputs can be sent.
  check() {
    const problems = this.fields.map((field) => [field.name, this.#problemOf(field)]).filter(([, text]) => text);
    this.showProblems(problems);
    return problems.length === 0;
  }

  // Shows problems, pairs of an input's name and a text, beside the controls. Returns those of unknown inputs.
  showProblems(problems) {
    const texts = new Map(problems);
    for (const field of this.fields) this.#say(field, texts.get(field.name) ?? "");
    const wrong = this.fields.find((field) => texts.has(field.name));
    if (wrong) {
      if (wrong.folded) this.form.querySelector("#further").open = true;
      this.control(wrong).focus();
    }
    return problems.filter(([name]) => !this.fields.some((field) => field.name === name));
  }

  // Fills the form with the input of a prediction.
  fill(input) {
    for (const field of this.fields) {
      if (field.kind !== "secret") this.#put(field, input[field.name] ?? field.default);
    }
    this.#keep();
  }

  // Puts a value, a file's URL or a text, into one input.
  use(field, value) {
    this.#put(field, field.kind === "files" ? [...(parsed(field, this.control(field).value) ?? []), value] : value);
    if (field.folded) this.form.querySelector("#further").open = true;
    this.#keep();
    this.control(field).focus();
  }

  // Waits for the files that are still being uploaded; returns whether all have arrived.
  async uploaded() {
    const sent = await Promise.all(this.#sending);
    return !sent.includes(false);
  }

  control(field) {
    return document.getElementById(`input-${field.name}`);
  }

  #row(field) {
    return this.control(field).closest(".input");
  }

  #prepare(field) {
    const control = this.control(field);
    if (field.kind === "choice") {
      control.querySelectorAll("[data-choice]").forEach((option, at) => (option.value = String(field.choices[at])));
    }
    if (!FILES.includes(field.kind)) return;
    const chooser = document.getElementById(`input-${field.name}-file`);
    chooser.addEventListener("change", () => this.#send([...chooser.files], field));
    const button = this.#row(field).querySelector(".record");
    if (button !== null && navigator.mediaDevices && globalThis.MediaRecorder) {
      button.disabled = false;
      button.title = "";
      button.addEventListener("click", () => void this.#record(field, button));
    }
    this.#preview(field);
  }

  #read(field) {
    const control = this.control(field);
    if (field.kind === "switch") return control.checked;
    if (control.validity.badInput) throw new Error(_("{title} must be a number.", field));
    return parsed(field, control.value);
  }

  #problemOf(field) {
    try {
      const missing = this.#read(field) === undefined;
      return missing && field.required ? _("{title} is required.", field) : "";
    } catch (error) {
      return error.message;
    }
  }

  #say(field, text) {
    const said = document.getElementById(`input-${field.name}-error`);
    if (said.textContent !== text) said.textContent = text;
    this.control(field).toggleAttribute("aria-invalid", false);
    if (text) this.control(field).setAttribute("aria-invalid", "true");
  }

  #put(field, value) {
    this.#putText(field, field.kind === "switch" ? Boolean(value) : shown(field, value));
  }

  #putText(field, text) {
    const control = this.control(field);
    if (field.kind === "switch") control.checked = text;
    else control.value = text;
    if (field.widget === "slider") this.#row(field).querySelector("[type=range]").value = text;
    if (FILES.includes(field.kind)) this.#preview(field);
    this.#say(field, "");
  }

  #changed(target) {
    const row = target.closest(".input");
    const field = this.fields.find(({ name }) => name === row?.dataset.name);
    if (field === undefined || target.type === "file") return;
    const control = this.control(field);
    if (target.type === "range") control.value = target.value;
    else if (field.widget === "slider") row.querySelector("[type=range]").value = control.value;
    this.#say(field, "");
    if (FILES.includes(field.kind)) this.#preview(field);
    this.#keep();
  }

  // -- what is kept

  #texts() {
    const open = this.fields.filter((field) => field.kind !== "secret");
    return Object.fromEntries(open.map((field) => {
      const control = this.control(field);
      return [field.name, field.kind === "switch" ? control.checked : control.value];
    }));
  }

  #keep() {
    const changed = Object.entries(this.#texts()).filter(([name, text]) => text !== this.#first[name]);
    keepForTab(this.#draft, Object.fromEntries(changed));
  }

  #restore() {
    const kept = JSON.parse(sessionStorage.getItem(this.#draft) ?? "{}");
    for (const field of this.fields) {
      if (field.kind !== "secret" && kept[field.name] !== undefined) this.#putText(field, kept[field.name]);
    }
  }

  // -- files

  #send(files, field) {
    const sending = this.#upload(files, field).finally(() => this.#sending.delete(sending));
    this.#sending.add(sending);
  }

  async #upload(files, field) {
    if (files.length === 0) return true;
    const row = this.#row(field);
    row.setAttribute("aria-busy", "true");
    try {
      const urls = await Promise.all(files.map(upload));
      urls.forEach((url, at) => (this.uploads[url] = files[at].name));
      const before = field.kind === "files" ? parsed(field, this.control(field).value) ?? [] : [];
      this.#put(field, field.kind === "files" ? [...before, ...urls] : urls[0]);
      this.#keep();
      return true;
    } catch (error) {
      this.#say(field, error.message);
      return false;
    } finally {
      row.removeAttribute("aria-busy");
    }
  }

  // Shows the images and sounds of this appliance that the control names.
  #preview(field) {
    const urls = this.control(field).value.split("\n").map((line) => line.trim()).filter(Boolean);
    const found = urls.slice(0, 8).map((url) => previewOf(url)).filter((url) => url !== null);
    const place = this.#row(field).querySelector(".preview");
    const before = [...place.children].map((child) => child.dataset.url);
    if (same(before, found)) return;
    place.replaceChildren(...found.map((url) => elementOf(url, field)));
  }

  async #record(field, button) {
    if (button.recorder) return button.recorder.stop();
    const label = button.textContent;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const recorder = (button.recorder = new MediaRecorder(stream));
      const parts = [];
      recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
      recorder.addEventListener("stop", () => {
        for (const track of stream.getTracks()) track.stop();
        button.recorder = null;
        button.textContent = label;
        button.classList.remove("on");
        const type = recorder.mimeType.split(";")[0];
        const ending = { "audio/mp4": "m4a", "audio/ogg": "ogg" }[type] ?? "webm";
        this.#send([new File(parts, `recording.${ending}`, { type })], field);
      });
      recorder.start();
      button.textContent = button.dataset.stop;
      button.classList.add("on");
    } catch (error) {
      this.#say(field, _("The browser does not record: {problem}", { problem: error.message }));
    }
  }
}

// The URL at which this page may load a file: an upload, an output or a data URL; null for files of other servers.
function previewOf(url) {
  if (/^data:(image|audio)\//i.test(url)) return url;
  if (!URL.canParse(url)) return null;
  const path = new URL(url).pathname;
  const upload = /\/v1\/files\/([A-Za-z0-9]+)/.exec(path);
  if (upload) return new URL(`_ui/api/v1/files/${upload[1]}/download`, document.baseURI).href;
  const at = path.lastIndexOf("/outputs/");
  return at < 0 ? null : new URL(path.slice(at + 1), document.baseURI).href;
}

// An image, which becomes a player if it is a sound, and nothing if it is neither.
function elementOf(url, field) {
  const image = made("img", { src: url, alt: _("Preview of {title}", field) });
  image.dataset.url = url;
  image.addEventListener("error", () => {
    const player = made("audio", { src: url, controls: true });
    player.dataset.url = url;
    player.addEventListener("error", () => player.remove());
    image.replaceWith(player);
  });
  return image;
}
