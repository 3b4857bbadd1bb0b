// The field for the next message. The browser keeps one draft for each conversation until the draft is sent.

import { attach } from "./chat_attachments.js";
import { forget, recall, remember } from "./chat_memory.js";
import { _ } from "./texts.js";

const element = (id) => document.getElementById(id);

function emptyDraft() {
  return { text: "", images: [], files: [] };
}

export class Composer {
  // `sent` is called with a draft. `acceptsImages()` tells whether the chosen model accepts images.
  constructor({ sent, acceptsImages, mayRun }) {
    this.sent = sent;
    this.acceptsImages = acceptsImages;
    this.key = "draft new";
    this.draft = emptyDraft();
    this.drafts = new Map(); // key -> draft, of each conversation that was opened
    this.attaching = null; // a promise of what went wrong, while files are being read
    this.area = element("message");
    if (mayRun) this.#listen();
  }

  #listen() {
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.send();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      void this.send();
    });
    this.area.addEventListener("input", () => {
      this.draft.text = this.area.value;
      this.keep();
    });
    this.area.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      void this.attach(event.clipboardData.files);
    });
    element("attach").addEventListener("click", () => element("files").click());
    element("files").addEventListener("change", ({ target }) => {
      void this.attach([...target.files]).then(() => (target.value = ""));
    });
    this.#listenToDrops(element("chat-main"));
  }

  #listenToDrops(target) {
    const hasFiles = (event) => event.dataTransfer.types.includes("Files");
    target.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      target.classList.add("dropping");
    });
    target.addEventListener("dragleave", () => target.classList.remove("dropping"));
    target.addEventListener("drop", (event) => {
      target.classList.remove("dropping");
      if (!hasFiles(event)) return;
      event.preventDefault();
      void this.attach(event.dataTransfer.files);
    });
  }

  // Shows the draft of a conversation; `id` is null for a new one.
  open(id) {
    this.key = `draft ${id ?? "new"}`;
    this.draft = this.drafts.get(this.key) ?? { ...emptyDraft(), ...recall(this.key) };
    this.drafts.set(this.key, this.draft); // files that are still being read are added to it
    this.area.value = this.draft.text;
    this.tell("");
    this.#showAttached();
  }

  keep(draft = this.draft, key = this.key) {
    const { text, images, files } = draft;
    if (text === "" && images.length === 0 && files.length === 0) forget(key);
    else if (!remember(key, draft)) remember(key, { text }); // the browser has no space for the files
  }

  // Empties the field, and forgets what was in it.
  clear() {
    forget(this.key);
    this.draft = emptyDraft();
    this.drafts.set(this.key, this.draft);
    this.area.value = "";
    this.#showAttached();
  }

  // Adds files to the draft that is shown now, after those that are still being read.
  attach(files) {
    const reading = this.#read([...files], this.attaching).finally(() => {
      if (this.attaching === reading) this.attaching = null;
    });
    this.attaching = reading;
    return reading;
  }

  // Returns why files were not added to the draft; empty if all were.
  async #read(files, before) {
    const { draft, key } = this;
    const images = this.acceptsImages();
    const problems = [await before];
    problems.push(await attach(draft, files, { images }).catch((error) => error.message));
    const problem = problems.filter(Boolean).join(" ");
    this.keep(draft, key);
    if (draft === this.draft) {
      this.tell(problem);
      this.#showAttached();
    }
    return problem;
  }

  async send() {
    const { draft } = this;
    if (this.attaching !== null && (await this.attaching) !== "") return; // the user sees which files are missing
    if (draft !== this.draft) return; // it was sent meanwhile, or another conversation was opened
    const { text, images, files } = draft;
    if (element("send").hidden || element("send").disabled) return;
    if (text.trim() === "" && images.length === 0 && files.length === 0) return;
    if (images.length > 0 && !this.acceptsImages()) {
      this.tell(_("This model does not accept images. Remove them, or choose another model."));
      return;
    }
    this.tell("");
    this.sent(draft);
  }

  tell(text) {
    const problem = element("composer-problem");
    problem.hidden = text === "";
    problem.textContent = text;
  }

  #showAttached() {
    const rows = [
      ...this.draft.images.map((file) => this.#attached(this.draft.images, file)),
      ...this.draft.files.map((file) => this.#attached(this.draft.files, file)),
    ];
    element("attached").replaceChildren(...rows);
  }

  #attached(list, file) {
    const row = document.createElement("li");
    if (file.url !== undefined) {
      const image = document.createElement("img");
      image.src = file.url;
      image.alt = "";
      row.append(image);
    }
    const name = document.createElement("span");
    name.textContent = file.name;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = _("Remove");
    remove.setAttribute("aria-label", _("Remove {name}", file));
    remove.addEventListener("click", () => {
      list.splice(list.indexOf(file), 1);
      this.keep();
      this.#showAttached();
      this.area.focus();
    });
    row.append(name, remove);
    return row;
  }
}
