// The chat page: opens conversations, sends messages, and shows what arrives.

import { api, tell } from "./common.js";
import { answer, isIncomplete, newMessage, recover } from "./chat_answer.js";
import { Composer } from "./chat_composer.js";
import { AlreadyTold, Conversation } from "./chat_conversation.js";
import { exportAs } from "./chat_export.js";
import { ConversationList } from "./chat_list.js";
import { forget, forgetDeleted, recall, recallRevision, remember, rememberFor } from "./chat_memory.js";
import { MessageView } from "./chat_message.js";
import { listenToSettings, problemOf, showSettings } from "./chat_settings.js";
import { _ } from "./texts.js";

const data = JSON.parse(document.getElementById("chat-data").textContent);
const element = (id) => document.getElementById(id);
const models = new Map(data.models.map((model) => [model.name, model]));
const opened = new Map(); // id -> conversation
const views = new Map(); // id of a message -> its view
const NEAR = 80; // pixels from the end at which the page scrolls with the answer
const STATUS_INTERVAL = 2000; // milliseconds

rememberFor(data.account);
forgetDeleted(data.conversations.map(({ id }) => id));
let current = new Conversation();
let following = true; // whether the page scrolls with the answer
let scheduled = false;
let waiting = ""; // why there is no answer yet

const composer = new Composer({ sent: send, acceptsImages: () => models.get(current.model)?.images, mayRun: data.mayRun });
const list = new ConversationList(data.conversations, {
  mayRun: data.mayRun,
  known: (id) => opened.get(id),
  opened: (id) => void open(id, { push: true }),
  renamed(id, title) {
    if (id === current.id) document.title = title;
  },
  removed(id) {
    opened.delete(id);
    if (id === current.id) void open(null, { push: true });
  },
});
const actions = {
  mayRun: data.mayRun,
  choose(message) {
    current.choose(message);
    if (data.mayRun) store(current);
    show();
  },
  edit(message, text) {
    if (!mayAnswer(current)) return false;
    const { images, files } = message;
    current.add(newMessage("user", message.parent, { text, ...(images && { images }), ...(files && { files }) }));
    void run(current);
    return true;
  },
  regenerate(message) {
    if (!mayAnswer(current)) return;
    current.leaf = message.parent;
    void run(current);
  },
  answerTools(message, results) {
    if (!mayAnswer(current)) return;
    for (const { id, text } of results) current.add(newMessage("tool", current.leaf, { text, tool_call: id }));
    void run(current);
  },
};

// -- sending

async function send(draft) {
  const conversation = current;
  if (!mayAnswer(conversation)) return;
  const { text, images, files } = draft;
  const fields = { text, ...(images.length > 0 && { images }), ...(files.length > 0 && { files }) };
  const leaf = conversation.leaf;
  const message = newMessage("user", leaf, fields);
  conversation.add(message);
  if (conversation.id === null) {
    conversation.title = titleOf(draft);
    element("send").disabled = true;
    try {
      await conversation.create();
    } catch (error) {
      conversation.messages.delete(message.id);
      conversation.leaf = leaf;
      const lost = error instanceof TypeError;
      composer.tell(lost ? _("The message was not sent: the appliance does not answer.") : error.message);
      return;
    } finally {
      element("send").disabled = false;
    }
    opened.set(conversation.id, conversation);
    forget("settings");
    if (current === conversation) {
      composer.clear();
      enter(conversation, { push: true });
    }
  } else composer.clear();
  following = true;
  await run(conversation);
}

function titleOf({ text, images, files }) {
  const line = text.trim().split("\n")[0];
  if (line === "") return [...images, ...files][0].name.slice(0, 80);
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}

// Returns whether the model may be asked; if not, the user is told why.
function mayAnswer(conversation) {
  const problem =
    conversation.answering === null
      ? problemOf(conversation.settings)
      : _("The model is still answering. Wait until it has finished, or stop the answer.");
  composer.tell(problem);
  return problem === "";
}

// Lets the model answer the last message.
async function run(conversation) {
  if (!mayAnswer(conversation)) return;
  list.busy.add(conversation.id);
  list.put(conversation);
  const watching = setInterval(() => void watchModel(conversation), STATUS_INTERVAL);
  const message = await answer(conversation, {
    changed: () => conversation === current && schedule(),
    failed: tellFailure,
  });
  clearInterval(watching);
  waiting = "";
  list.busy.delete(conversation.id);
  list.show();
  if (conversation === current) {
    show();
    element("spoken").textContent = message.error ?? message.text;
  }
}

// Shows whether the model is loading while there is no answer yet.
async function watchModel(conversation) {
  const message = conversation.path.at(-1);
  if (conversation !== current || message?.state !== "streaming" || message.text !== "") return;
  const status = await api("/admin/status").then((reply) => reply.json(), () => null);
  const model = status?.models.find(({ name }) => name === conversation.model);
  if (!model) return;
  const values = { passed: Math.round(model.loading_for ?? 0), expected: Math.round(model.load_seconds ?? 0) };
  waiting = "";
  if (model.loading_for !== null) {
    waiting = model.load_seconds
      ? _("The model is loading: {passed} s of about {expected} s", values)
      : _("The model is loading: {passed} s", values);
  } else if (model.queued > 0) waiting = _("Waiting. Requests in the queue of this model: {count}", { count: model.queued });
  schedule();
}

function store(conversation) {
  if (conversation.id === null) return;
  conversation.save().catch(tellFailure);
}

function tellFailure(error) {
  if (!(error instanceof AlreadyTold)) tell(error.message);
}

// -- showing

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    show();
  });
}

function show() {
  const { path, answering } = current;
  const busy = answering !== null;
  const shown = path.map((message) => {
    if (!views.has(message.id)) views.set(message.id, new MessageView(message, actions));
    const view = views.get(message.id);
    const last = message === path.at(-1);
    view.show(message, { alternatives: current.alternatives(message), last, busy, waiting });
    return view.element;
  });
  const messages = element("messages");
  shown.forEach((one, number) => {
    if (messages.children[number] !== one) messages.insertBefore(one, messages.children[number] ?? null);
  });
  while (messages.children.length > shown.length) messages.lastElementChild.remove();
  element("welcome").hidden = path.length > 0;
  element("send").hidden = busy;
  element("stop").hidden = !busy;
  element("export").disabled = path.length === 0;
  scrollWithAnswer();
}

function scrollWithAnswer() {
  const scroll = element("scroll");
  if (following) scroll.scrollTop = scroll.scrollHeight;
  element("newest").hidden = following || scroll.scrollHeight <= scroll.clientHeight + NEAR;
}

// -- opening

async function open(id, { push = false } = {}) {
  closeList();
  if (id === null) {
    enter(new Conversation(null, current.model), { push });
    return;
  }
  if (!opened.has(id)) {
    try {
      opened.set(id, restored(await (await api(`/admin/conversations/${id}`)).json()));
    } catch (error) {
      tell(error.message);
      return;
    }
  }
  enter(opened.get(id), { push });
}

// Returns a conversation of the API as it is stored now. A page may have been requested while this tab was storing a
// change: then the page has the conversation before the change, and this tab knows a newer revision.
async function newest(stored) {
  if (stored.revision >= recallRevision(stored.id)) return stored;
  return api(`/admin/conversations/${stored.id}`).then((reply) => reply.json(), () => stored);
}

// Returns a conversation of the API with the changes that were not stored, and completes its answers.
function restored(stored) {
  const conversation = new Conversation(stored);
  const changed = conversation.takeUnsaved();
  if (!data.mayRun) return conversation;
  if (changed) store(conversation);
  for (const message of conversation.messages.values()) {
    if (!isIncomplete(message)) continue;
    void recover(conversation, message.id, {
      changed: () => conversation === current && schedule(),
      ended: () => store(conversation),
    });
  }
  return conversation;
}

// Shows a conversation, and puts it into the address.
function enter(conversation, { push = false } = {}) {
  current = conversation;
  current.tookOver = () => showTakenOver(conversation);
  showModel();
  views.clear();
  following = true;
  waiting = "";
  composer.open(current.id);
  if (current.id === null) current.settings = recall("settings") ?? {};
  showSettings(current.settings);
  document.title = current.id === null ? _("Chat") : current.title;
  address(push);
  list.current = current.id;
  list.show();
  show();
  if (data.mayRun && matchMedia("(min-width: 900px)").matches) element("message").focus();
}

function showModel() {
  if (!models.has(current.model)) current.model = chosenModel();
  element("model").value = current.model;
}

// Shows the title, model and settings that another tab has stored.
function showTakenOver(conversation) {
  list.put(conversation);
  if (conversation !== current) return;
  showModel();
  if (!element("settings").contains(document.activeElement)) showSettings(current.settings);
  document.title = current.title;
  address(false);
}

function address(push) {
  const url = new URL(current.id === null ? "chat" : `chat/${current.id}`, document.baseURI);
  url.searchParams.set("model", current.model);
  if (push) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}

function chosenModel() {
  const names = [new URL(location.href).searchParams.get("model"), recall("model"), data.models[0].name];
  return names.find((name) => models.has(name));
}

function closeList() {
  document.body.classList.remove("chat-list-open");
  element("open-list").setAttribute("aria-expanded", "false");
}

// -- events

element("model").addEventListener("change", ({ target }) => {
  current.model = target.value;
  remember("model", current.model);
  address(false);
  store(current);
});
element("export").addEventListener("change", ({ target }) => {
  if (target.value !== "") exportAs(target.value, current);
  target.value = "";
});
element("stop").addEventListener("click", () => {
  current.answering?.abort();
  element("message").focus();
});
element("new-chat").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  void open(null, { push: true });
});
element("open-list").addEventListener("click", ({ target }) => {
  const shown = document.body.classList.toggle("chat-list-open");
  target.setAttribute("aria-expanded", String(shown));
});
element("scroll").addEventListener("scroll", ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < NEAR;
  if (following) element("newest").hidden = true;
});
element("newest").addEventListener("click", () => {
  following = true;
  scrollWithAnswer();
  element("scroll").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeList();
});
addEventListener("popstate", () => {
  const id = new URL(location.href).pathname.split("/chat/")[1];
  void open(id || null);
});
addEventListener("pagehide", () => {
  for (const conversation of opened.values()) conversation.leave();
});
listenToSettings((settings) => {
  current.settings = settings;
  if (current.id === null) remember("settings", settings);
  store(current);
}, data.mayRun);

const first = data.conversation === null ? new Conversation() : restored(await newest(data.conversation));
if (first.id !== null) opened.set(first.id, first);
const asked = new URL(location.href).searchParams.get("model");
if (models.has(asked)) first.model = asked;
enter(first);
