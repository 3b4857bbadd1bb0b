// The list of conversations: search in titles, rename, delete.

import { api, tell } from "./common.js";
import { Conversation } from "./chat_conversation.js";
import { _ } from "./texts.js";

const JSON_TYPE = { "content-type": "application/json" };

export class ConversationList {
  // `items` are those of the API. `opened` is called with the id of a conversation to open, `removed` with that of a
  // deleted one, `renamed` with id, title and revision. `known(id)` returns the conversation if it was opened before.
  constructor(items, { mayRun, opened, removed, renamed, known }) {
    Object.assign(this, { mayRun, opened, removed, renamed, known });
    this.items = items;
    this.current = null;
    this.busy = new Set(); // ids of conversations in which an answer is being written
    this.element = document.getElementById("conversations");
    this.search = document.getElementById("search");
    this.none = document.getElementById("no-conversations");
    this.search.addEventListener("input", () => this.show());
    this.show();
  }

  // Puts a conversation at the top of the list.
  put(conversation) {
    const { id, title, model, revision } = conversation;
    this.items = [{ id, title, model, revision }, ...this.items.filter((item) => item.id !== id)];
    this.show();
  }

  show() {
    const words = this.search.value.trim().toLocaleLowerCase().split(/\s+/);
    const found = this.items.filter(({ title }) => words.every((word) => title.toLocaleLowerCase().includes(word)));
    this.element.replaceChildren(...found.map((item) => this.#row(item)));
    this.none.hidden = found.length > 0;
    this.none.textContent = this.items.length > 0 ? _("No title matches.") : _("There are no conversations yet.");
  }

  #row(item) {
    const row = document.createElement("li");
    const link = document.createElement("a");
    link.href = new URL(`chat/${item.id}`, document.baseURI);
    link.textContent = item.title;
    link.title = item.title;
    if (item.id === this.current) link.setAttribute("aria-current", "page");
    if (this.busy.has(item.id)) row.classList.add("busy");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
      event.preventDefault();
      this.opened(item.id);
    });
    row.append(link);
    if (this.mayRun) {
      row.append(
        this.#button(_("Rename"), _("Rename {title}", item), () => this.#rename(item, row)),
        this.#button(_("Delete"), _("Delete {title}", item), () => this.#delete(item)),
      );
    }
    return row;
  }

  #button(text, label, clicked) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", clicked);
    return button;
  }

  #rename(item, row) {
    const input = document.createElement("input");
    input.value = item.title;
    input.maxLength = 200;
    input.setAttribute("aria-label", _("New title"));
    let over = false;
    const end = (store) => {
      if (over) return;
      over = true;
      const title = input.value.trim();
      if (store && title !== "" && title !== item.title) void this.#storeTitle(item, title);
      else this.show();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.select();
    input.focus();
  }

  // The list shows the new title once it is stored: until then, opening the conversation would show the old one.
  async #storeTitle(item, title) {
    this.show();
    try {
      const open = this.known(item.id);
      if (open !== undefined) {
        open.title = title;
        await open.save();
      } else {
        const path = `/admin/conversations/${item.id}`;
        const { messages, settings, leaf, model, revision } = await (await api(path)).json();
        const body = JSON.stringify({ title, messages, settings, leaf, model, revision });
        await api(path, { method: "PUT", headers: JSON_TYPE, body });
      }
      item.title = title;
      this.show();
      this.renamed(item.id, title);
    } catch (error) {
      tell(error.message);
    }
  }

  async #delete(item) {
    const dialog = document.getElementById("confirm");
    const question = _("Delete the conversation “{title}”?", item);
    document.getElementById("confirm-text").textContent = question;
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "yes") return;
    const conversation = this.known(item.id) ?? new Conversation(item);
    try {
      await conversation.delete();
    } catch (error) {
      tell(error.message);
      return;
    }
    this.items = this.items.filter(({ id }) => id !== item.id);
    this.show();
    this.removed(item.id);
  }
}
