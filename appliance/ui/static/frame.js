// Runs on every page without Gradio: messages of failed requests, the end of a session, and the lost connection.

import { _ } from "./texts.js";

const banner = document.getElementById("connection");

// Shows a message above the page; an empty text hides it.
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

export function tellSessionEnded() {
  const next = encodeURIComponent(location.pathname + location.search);
  tell(_("Your session has ended."), { href: new URL(`signin?next=${next}`, document.baseURI), text: _("Sign in again") });
}

// While the appliance does not answer, what the page shows is stale: style.css greys it.
export function setConnected(connected) {
  document.body.classList.toggle("stale", !connected);
  tell(connected ? "" : _("The appliance does not answer. This page shows what was last known."));
}

// Calls the API as `fetch` does; `path` begins with "/v1" or "/admin". Failures are errors with a text for people.
export async function api(path, options = {}) {
  let reply;
  try {
    reply = await fetch(new URL(`_ui/api${path}`, document.baseURI), options);
  } catch (error) {
    if (error.name !== "AbortError") setConnected(false);
    throw error;
  }
  if (document.body.classList.contains("stale")) setConnected(true);
  if (reply.ok) return reply;
  if (reply.status === 401) tellSessionEnded();
  throw new Error(await detailOf(reply));
}

export async function detailOf(reply) {
  try {
    return (await reply.json()).detail;
  } catch {
    return _("The appliance answered with the status {status}.", { status: reply.status });
  }
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
  if (successful && document.body.classList.contains("stale")) setConnected(true);
});
