// Runs on every page: messages, the end of a session, the lost connection, local times, the colour scheme, and
// the keys of the navigation.

import { _ } from "./texts.js";

const root = document.documentElement;
const banner = document.getElementById("connection");
const BEAT = 10_000; // milliseconds between two questions whether the appliance still answers
const LOST_BEAT = 2_000; // the same while it does not

// -- messages

// Shows a message above the page until it is replaced; an empty text hides it.
export function tell(text, link = null) {
  if (banner === null) return;
  banner.replaceChildren(text);
  if (link !== null) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.text;
    banner.append(" ", anchor);
  }
  banner.hidden = text === "";
}

// Shows a message in the corner for six seconds; `wrong` marks a failure.
export function toast(text, { wrong = false } = {}) {
  const shown = document.createElement("div");
  shown.className = wrong ? "toast wrong" : "toast";
  shown.textContent = text;
  document.querySelector(".toasts")?.append(shown);
  setTimeout(() => shown.remove(), 6000);
}

let ended = false;

export function tellSessionEnded() {
  ended = true;
  const next = encodeURIComponent(location.pathname + location.search);
  tell(_("Your session has ended."), { href: new URL(`signin?next=${next}`, document.baseURI), text: _("Sign in again") });
}

// While the appliance does not answer, what the page shows is stale: style.css greys it.
export function setConnected(connected) {
  const was = !document.body.classList.contains("stale");
  if (was === connected || ended) return;
  document.body.classList.toggle("stale", !connected);
  tell(connected ? "" : _("The appliance does not answer. This page shows what was last known."));
}

// Calls the API as `fetch` does; `path` begins with "/v1" or "/admin". Failures are errors with a text for people, the
// `status`, and the `problems` of a refused input.
export async function api(path, options = {}) {
  let reply;
  try {
    reply = await fetch(new URL(`_ui/api${path}`, document.baseURI), options);
  } catch (error) {
    if (error.name !== "AbortError") setConnected(false);
    throw error;
  }
  setConnected(true);
  if (reply.ok) return reply;
  if (reply.status === 401) tellSessionEnded();
  const { detail, invalid_fields: problems = [] } = await refusalOf(reply);
  throw Object.assign(new Error(detail), { status: reply.status, problems });
}

async function refusalOf(reply) {
  try {
    return await reply.json();
  } catch {
    return { detail: _("The appliance answered with the status {status}.", { status: reply.status }) };
  }
}

export async function detailOf(reply) {
  return (await refusalOf(reply)).detail;
}

document.addEventListener("htmx:responseError", ({ detail: { xhr } }) => {
  if (xhr.status === 401) return tellSessionEnded();
  try {
    tell(JSON.parse(xhr.responseText).detail);
  } catch {
    tell(_("The appliance answered with the status {status}.", { status: xhr.status }));
  }
});
document.addEventListener("htmx:sendError", () => setConnected(false));
document.addEventListener("htmx:afterRequest", ({ detail: { successful } }) => {
  if (successful) setConnected(true);
});

// -- whether the appliance answers

let leaving = false;
addEventListener("pagehide", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));
document.addEventListener("submit", ({ target }) => {
  if (!target.action.endsWith("/signout")) return;
  leaving = true;
  sessionStorage.clear(); // the next user of this tab must not see what was typed
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (leaving) event.preventDefault(); // parts of the page would be answered with 401
});

// Asks whether the appliance answers and the session goes on, and tells if not.
async function ask() {
  try {
    const reply = await fetch(new URL("_ui/beat", document.baseURI), { cache: "no-store" });
    if (!reply.ok) throw new TypeError(`status ${reply.status}`);
    const { session } = await reply.json();
    setConnected(true);
    if (!session) tellSessionEnded();
  } catch {
    if (!leaving) setConnected(false);
  }
}

async function beat() {
  if (ended) return;
  if (!document.hidden && !leaving) await ask();
  setTimeout(beat, document.body.classList.contains("stale") ? LOST_BEAT : BEAT);
}
if (banner !== null) setTimeout(beat, BEAT);

// Opens the stream of events at a path of the API, and opens it again when it was refused, which a restart of the
// gateway or of the UI does too. `listeners` are functions by the name of the event. Returns a function that ends it.
export function followEvents(path, listeners) {
  let source = null;
  let timer = null;
  let stopped = false;
  function open() {
    const opened = (source = new EventSource(new URL(`_ui/api${path}`, document.baseURI)));
    for (const [name, listener] of Object.entries(listeners)) opened.addEventListener(name, listener);
    opened.addEventListener("error", async () => {
      if (opened.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
      await ask();
      if (!stopped && !ended) timer = setTimeout(open, LOST_BEAT);
    });
  }
  open();
  return () => {
    stopped = true;
    clearTimeout(timer);
    source.close();
  };
}

// -- times: the server writes how long ago they are, the title is the local time

const UNITS = [
  [86400, (n) => _("{n} d", { n })],
  [3600, (n) => _("{n} h", { n })],
  [60, (n) => _("{n} min", { n })],
  [1, (n) => _("{n} s", { n })],
];
const WEEK = 7 * 86400;

export function ago(date, now = new Date()) {
  const seconds = Math.round((now - date) / 1000);
  const size = Math.abs(seconds);
  if (size >= WEEK) {
    const two = (number) => String(number).padStart(2, "0");
    return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  }
  if (size < 5) return _("just now");
  const [unit, format] = UNITS.find(([unit]) => size >= unit);
  const amount = format(Math.floor(size / unit));
  return seconds < 0 ? _("in {amount}", { amount }) : _("{amount} ago", { amount });
}

function showTimes(where = document) {
  for (const element of where.querySelectorAll("time[datetime]")) {
    const date = new Date(element.dateTime);
    if (Number.isNaN(date.getTime())) continue;
    const title = date.toLocaleString(root.lang, { dateStyle: "full", timeStyle: "long" });
    if (element.title !== title) element.title = title;
    const text = ago(date);
    if (!element.hasAttribute("data-exact") && element.textContent !== text) element.textContent = text;
  }
}

let due = false;
new MutationObserver(() => {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; showTimes(); });
}).observe(document.body, { childList: true, subtree: true });
setInterval(() => document.hidden || showTimes(), 10_000);
showTimes();

// -- the colour scheme

// Keeps what the user has chosen for a year; an empty value removes it.
function keepChoice(name, value) {
  const age = value ? 365 * 86400 : 0;
  const path = new URL(document.baseURI).pathname;
  document.cookie = `${name}=${value}; path=${path}; max-age=${age}; samesite=lax`;
}

document.addEventListener("change", ({ target }) => {
  if (target.name === "appliance-language") {
    keepChoice("appliance_language", target.value);
    location.reload();
  }
  if (target.name !== "appliance-theme") return;
  if (target.value) root.dataset.theme = target.value;
  else delete root.dataset.theme;
  keepChoice("appliance_theme", target.value);
});

// -- the navigation: one stop of the Tab key, inside of which the arrow keys move

const links = [...document.querySelectorAll(".frame .links a")];
const current = links.find((link) => link.hasAttribute("aria-current"));
for (const link of links) link.tabIndex = link === (current ?? links[0]) ? 0 : -1;
if (current) { // to the middle of the row, in both directions of writing
  const [link, row] = [current.getBoundingClientRect(), current.parentElement.getBoundingClientRect()];
  current.parentElement.scrollBy({ left: link.left + link.width / 2 - row.left - row.width / 2 });
}
document.querySelector(".frame .links")?.addEventListener("keydown", (event) => {
  const here = links.indexOf(document.activeElement);
  const step = getComputedStyle(event.currentTarget).direction === "rtl" ? -1 : 1;
  const to = { ArrowRight: here + step, ArrowLeft: here - step, Home: 0, End: links.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const link = links[(to + links.length) % links.length];
  for (const each of links) each.tabIndex = each === link ? 0 : -1;
  link.focus();
});

document.querySelector(".skip")?.addEventListener("click", (event) => {
  const main = document.querySelector("#main, main");
  if (main === null) return;
  event.preventDefault();
  main.tabIndex = -1;
  main.focus();
});

const menu = document.querySelector(".frame .menu");
document.addEventListener("click", ({ target }) => {
  if (menu?.open && !menu.contains(target)) menu.open = false;
});
menu?.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// -- buttons that copy: <button data-copy="id of an element">

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    toast(_("Copied"));
  } catch { // browsers allow it on https and localhost only
    getSelection().selectAllChildren(source);
    toast(_("Press Ctrl+C to copy the selected text."));
  }
});

// -- the dialog that finds things

const openFind = () => import("./find.js").then(({ open }) => open());
document.querySelector(".open-find")?.addEventListener("click", openFind);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  const asked =
    (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey) ||
    (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey);
  if (!asked || document.querySelector(".open-find") === null) return;
  event.preventDefault();
  openFind();
});
