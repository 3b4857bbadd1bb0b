// A conversation: a tree of messages, kept in the appliance and, until it is stored there, in the browser.

import { api, detailOf, setConnected, tellSessionEnded, toast } from "./common.js";
import { forget, recall, remember, rememberRevision } from "./chat_memory.js";
import { _ } from "./texts.js";

const MOST_KEPT_ALIVE = 60_000; // characters: browsers send at most 64 KiB after a page was left
const CHOSEN = ["title", "model", "settings"]; // what users choose; each tab may change it

const JSON_TYPE = { "content-type": "application/json" };

let spaceTold = false; // whether the user knows that the browser has no space

// A failure that the banner of the page already shows: a lost connection, or an ended session.
export class AlreadyTold extends Error {}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Conversation {
  // `stored` is the conversation in a response of the API; without it, the conversation is new.
  constructor(stored = null, model = "") {
    this.id = stored?.id ?? null;
    this.title = stored?.title ?? "";
    this.model = stored?.model ?? model;
    this.settings = stored?.settings ?? {};
    this.messages = new Map((stored?.messages ?? []).map((message) => [message.id, message]));
    this.leaf = stored?.leaf ?? null;
    this.revision = stored?.revision ?? 0;
    this.deleted = false;
    this.answering = null; // the AbortController of the answer that is being written
    this.dirty = false;
    this.saving = null;
    this.tookOver = () => {}; // called when what users choose was taken over from another tab
    this.known = this.#chosen(); // as last read or stored
    if (this.leaf !== null && !this.messages.has(this.leaf)) this.leaf = null;
  }

  get body() {
    const { title, model, settings, leaf } = this;
    return { title, model, settings, leaf, messages: [...this.messages.values()] };
  }

  // The messages from the first to the leaf: the branch that the page shows.
  get path() {
    const found = [];
    for (let id = this.leaf; id !== null && this.messages.has(id); id = found[0].parent) {
      found.unshift(this.messages.get(id));
    }
    return found;
  }

  add(message) {
    this.messages.set(message.id, message);
    this.leaf = message.id;
  }

  // The message and its alternatives: those with the same parent, oldest first.
  alternatives(message) {
    return [...this.messages.values()].filter(({ parent }) => parent === message.parent);
  }

  // Shows the branch of a message, down to the newest message after it.
  choose(message) {
    let last = message;
    for (;;) {
      const children = [...this.messages.values()].filter(({ parent }) => parent === last.id);
      if (children.length === 0) break;
      last = children.at(-1);
    }
    this.leaf = last.id;
  }

  // Adds the messages that another copy of the conversation has, and the longer of two versions of a message.
  merge(messages) {
    for (const other of messages) {
      const own = this.messages.get(other.id);
      if (own?.state === "streaming" && this.answering !== null) continue; // this page is writing it
      const ended = own?.state === "streaming" && other.state !== "streaming";
      if (own === undefined || ended || other.text.length > own.text.length) this.messages.set(other.id, other);
    }
  }

  // Takes over the changes that the browser has kept because they could not be stored. Returns whether there are any.
  takeUnsaved() {
    const unsaved = recall(`unsaved ${this.id}`);
    if (unsaved === null) return false;
    this.merge(unsaved.messages);
    if (this.messages.has(unsaved.leaf)) this.leaf = unsaved.leaf; // the branch that this browser has shown last
    if (unsaved.revision === this.revision) {
      for (const name of CHOSEN) this[name] = unsaved[name];
    }
    return true;
  }

  // What users choose, as text, by which changes are found.
  #chosen() {
    return Object.fromEntries(CHOSEN.map((name) => [name, JSON.stringify(this[name])]));
  }

  async create() {
    const known = this.#chosen();
    const reply = await api("/admin/conversations", { method: "POST", headers: JSON_TYPE, body: this.#text() });
    const { id, revision } = await reply.json();
    Object.assign(this, { id, revision, known });
  }

  // Stores the conversation. A failure leaves the changes in the browser, and rejects.
  save() {
    this.dirty = true;
    const kept = this.keep();
    this.saving ??= this.#save().finally(() => (this.saving = null));
    if (!kept) this.saving.catch(() => this.deleted || tellNoSpace());
    return this.saving;
  }

  async #save() {
    while (this.dirty && !this.deleted) {
      this.dirty = false;
      try {
        await this.#put();
      } catch (error) {
        this.dirty = true;
        throw error;
      }
    }
    if (!this.deleted) forget(`unsaved ${this.id}`);
  }

  async #put() {
    const path = `/admin/conversations/${this.id}`;
    const known = this.#chosen();
    const reply = await request(path, { method: "PUT", headers: JSON_TYPE, body: this.#text() });
    if (reply.status === 404) {
      this.deleted = true; // elsewhere: it must not come back
      this.forget();
      throw new Error(await detailOf(reply));
    } else if (reply.status === 409 && (await this.#mergeStored(path))) {
      this.dirty = true;
    } else if (!reply.ok) throw new Error(await detailOf(reply));
    else {
      Object.assign(this, { revision: (await reply.json()).revision, known });
      rememberRevision(this.id, this.revision); // before `unsaved` is forgotten
    }
  }

  // Returns whether the stored conversation was changed since it was read. Then its messages are added, and what this
  // tab has not changed itself is taken over.
  async #mergeStored(path) {
    const stored = await (await api(path)).json();
    if (stored.revision === this.revision) return false; // the account has reached a limit
    this.merge(stored.messages);
    this.revision = stored.revision;
    const chosen = this.#chosen();
    const changed = CHOSEN.filter((name) => JSON.stringify(stored[name]) !== this.known[name]);
    const taken = changed.filter((name) => chosen[name] === this.known[name]);
    for (const name of taken) this[name] = stored[name];
    for (const name of changed) this.known[name] = JSON.stringify(stored[name]);
    if (taken.length > 0) this.tookOver();
    return true;
  }

  // Keeps the conversation in the browser until it is stored. Returns whether the browser has the space.
  keep() {
    if (this.id === null || this.deleted) return true;
    return remember(`unsaved ${this.id}`, { ...this.body, revision: this.revision });
  }

  // Keeps and sends what is not stored yet, as the page is being left.
  leave() {
    if (this.id === null || this.deleted || (!this.dirty && this.answering === null)) return;
    this.keep();
    const body = this.#text();
    if (body.length < MOST_KEPT_ALIVE) {
      void request(`/admin/conversations/${this.id}`, {
        method: "PUT",
        headers: JSON_TYPE,
        body,
        keepalive: true,
      }).catch(() => {}); // the browser has kept it
    }
  }

  async delete() {
    this.deleted = true;
    this.answering?.abort();
    await api(`/admin/conversations/${this.id}`, { method: "DELETE" }).catch((error) => {
      this.deleted = false;
      throw error;
    });
    this.forget();
  }

  forget() {
    forget(`unsaved ${this.id}`);
    forget(`draft ${this.id}`);
  }

  #text() {
    return JSON.stringify(this.id === null ? this.body : { ...this.body, revision: this.revision });
  }
}

function tellNoSpace() {
  if (spaceTold) return;
  spaceTold = true;
  const text = _("This browser has no space for the last changes: leave this page open until the appliance has stored them.");
  toast(text, { wrong: true });
}

// As `api` of common.js, but returns all responses except those to an ended session.
async function request(path, options) {
  let reply;
  try {
    reply = await fetch(new URL(`_ui/api${path}`, document.baseURI), options);
  } catch (error) {
    setConnected(false);
    throw new AlreadyTold(error.message);
  }
  if (document.body.classList.contains("stale")) setConnected(true);
  if (reply.status !== 401) return reply;
  tellSessionEnded();
  throw new AlreadyTold(await detailOf(reply));
}
