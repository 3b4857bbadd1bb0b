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
    this.area = element("message");
    if (mayRun) this.#listen();
  }

  #listen() {
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
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
    this.draft = { ...emptyDraft(), ...recall(this.key) };
    this.area.value = this.draft.text;
    this.tell("");
    this.#showAttached();
  }

  keep() {
    const { text, images, files } = this.draft;
    if (text === "" && images.length === 0 && files.length === 0) forget(this.key);
    else if (!remember(this.key, this.draft)) remember(this.key, { text }); // the browser has no space for the files
  }

  // Empties the field, and forgets what was in it.
  clear() {
    forget(this.key);
    this.draft = emptyDraft();
    this.area.value = "";
    this.#showAttached();
  }

  async attach(files) {
    this.tell(await attach(this.draft, [...files], { images: this.acceptsImages() }));
    this.keep();
    this.#showAttached();
  }

  send() {
    const { text, images, files } = this.draft;
    if (element("send").hidden || element("send").disabled) return;
    if (text.trim() === "" && images.length === 0 && files.length === 0) return;
    if (images.length > 0 && !this.acceptsImages()) {
      this.tell(_("This model does not accept images. Remove them, or choose another model."));
      return;
    }
    this.tell("");
    this.sent(this.draft);
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
