// The page of a model: runs the model, follows the run, and shows the tabs. The id of the run and the tab are in the
// address, so that reloading and going back show them again.

import { _ } from "./texts.js";
import { api, detailOf, toast } from "./common.js";
import { textOf } from "./compare_summary.js";
import { ModelForm } from "./model_form.js";
import { chooseUse } from "./model_use.js";
import { ENDED, Follower, percentOf, wordsOf } from "./prediction_follow.js";
import "./tabs.js";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("model-data").textContent);
const asked = new URLSearchParams(location.search);
const output = byId("output"); // of models that write text
const media = byId("media"); // of others
const runButton = byId("run");
const cancelButton = byId("cancel");
const mayRun = runButton.hasAttribute("data-may-run");
const form = new ModelForm(byId("inputs"), data.fields, {
  draft: `draft:${data.path}`,
  restored: !asked.has("run") && !asked.has("from"),
});
let follower = null;
let cancelWanted = false;
let loadSeconds = null; // of the model's last load
let shownOutput = ""; // JSON of the output that is shown in `media`

const pathOf = (path) => new URL(path.slice(1), document.baseURI);
const showError = (error) => toast(error.message, { wrong: true });

// Returns a part of a page, which the server has made as HTML.
async function partOf(path, options = {}) {
  const headers = { ...options.headers, "hx-request": "true" };
  const reply = await fetch(pathOf(path), { ...options, headers });
  if (!reply.ok) throw new Error(await detailOf(reply));
  return reply.text();
}

function setAddress(name, value) {
  const address = new URL(location.href);
  if (value === null) address.searchParams.delete(name);
  else address.searchParams.set(name, value);
  if (name === "run") address.searchParams.delete("from");
  history.replaceState(history.state, "", address);
  const skip = document.querySelector("a.skip");
  if (skip !== null) skip.href = `${address.href}#main`;
}

// -- a run

function status(name, words) {
  const badge = document.querySelector(".run-status .badge");
  badge.className = `badge ${name}`;
  if (badge.textContent !== name) badge.textContent = name;
  const said = document.querySelector(".run-status .said");
  if (said.textContent !== words) said.textContent = said.title = words;
}

function setRunning(running) {
  runButton.disabled = running || !mayRun;
  cancelButton.disabled = !running || !mayRun;
}

function blank() {
  byId("run-error").textContent = byId("metrics").textContent = byId("logs").textContent = "";
  byId("prediction-link").hidden = true;
  output?.replaceChildren();
  media?.replaceChildren();
  shownOutput = "";
  loadSeconds = null;
  progress(null);
}

function progress(percent) {
  const bar = document.querySelector(".run-status progress");
  bar.classList.toggle("on", percent !== null);
  bar.value = percent ?? 0;
}

async function run() {
  if (runButton.disabled) return;
  if (!form.check()) return;
  follower?.stop();
  follower = null;
  blank();
  cancelWanted = false;
  setRunning(true);
  status("starting", "");
  const result = byId("result");
  if (result.getBoundingClientRect().top > innerHeight / 2) result.scrollIntoView({ behavior: "smooth" });
  try {
    if (!(await form.uploaded())) throw new Error(_("A file could not be uploaded."));
    const body = JSON.stringify({ version: data.version, input: form.values() });
    const headers = { "content-type": "application/json" };
    const created = await (await api("/v1/predictions", { method: "POST", headers, body })).json();
    setAddress("run", created.id);
    follow(created.id, created.urls.stream);
    if (cancelWanted) await cancel();
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  const problems = (error.problems ?? []).map(({ field, description }) => [
    field.replace(/^input\./, "").split(/[.[]/)[0], description,
  ]);
  const others = form.showProblems(problems);
  status("failed", "");
  const said = others.map(([name, text]) => (name ? `${name}: ${text}` : text)).join("\n");
  byId("run-error").textContent = problems.length > 0 ? said : error.message;
  setRunning(false);
}

async function cancel() {
  cancelWanted = true;
  if (follower === null) return; // `run` does it when the prediction has an id
  try {
    await api(`/v1/predictions/${follower.id}/cancel`, { method: "POST" });
  } catch (error) {
    showError(error);
  }
  follower?.wake();
}

function follow(id, stream) {
  follower?.stop();
  setRunning(true);
  const link = byId("prediction-link");
  link.href = pathOf(`/p/${id}`).href;
  link.textContent = id.slice(0, 8);
  link.hidden = false;
  follower = new Follower(id, {
    streams: output !== null,
    stream,
    changed: show,
    arrived(text) {
      if (document.querySelector(".run-status .starting")) status("processing", "");
      showText(text);
    },
    refused: (message) => fail(new Error(message)),
  });
}

// Shows a prediction as the API has it now.
function show(record) {
  const ended = ENDED.has(record.status);
  const begun = record.status === "starting" && output?.textContent;
  if (record.metrics?.waits_for === "load" && loadSeconds === null) askForEstimate().catch(() => {});
  status(begun ? "processing" : record.status, wordsOf(record, ended, loadSeconds));
  progress(ended ? null : percentOf(record.logs ?? ""));
  byId("run-error").textContent = record.error ?? "";
  const logs = byId("logs");
  if (logs.textContent !== (record.logs ?? "")) logs.textContent = record.logs ?? "";
  if (output === null) showMedia(record).catch(showError);
  if (!ended) return;
  if (output !== null) showText(textOf(record.output));
  byId("metrics").textContent = metricsOf(record);
  setRunning(false);
  follower = null;
  globalThis.htmx?.trigger("#history", "refresh");
}

async function askForEstimate() {
  loadSeconds = 0; // unknown: ask once
  const { models } = await (await api("/admin/status")).json();
  loadSeconds = models.find(({ name }) => name === data.model)?.load_seconds ?? 0;
}

function showText(text) {
  const before = output.firstChild?.data ?? "";
  if (text === before) return;
  const following = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
  if (before !== "" && text.startsWith(before)) output.firstChild.appendData(text.slice(before.length));
  else output.textContent = text;
  if (following) output.scrollTop = output.scrollHeight;
}

// Shows files and data as the page of the prediction does: the server makes the HTML.
async function showMedia(record) {
  const now = JSON.stringify(record.output ?? null);
  if (now === "null" || now === "[]" || now === shownOutput) return;
  if (data.kind !== "files" && !ENDED.has(record.status)) return;
  shownOutput = now;
  const html = await partOf(`/p/${record.id}/output`);
  if (now === shownOutput) media.innerHTML = html;
}

function metricsOf({ metrics = {}, cost, currency }) {
  const parts = [];
  if (metrics.predict_time !== undefined) parts.push(`${metrics.predict_time.toFixed(2)} s`);
  if (metrics.output_token_count) parts.push(_("{count} tokens", { count: metrics.output_token_count.toLocaleString() }));
  if (metrics.tokens_per_second) parts.push(_("{speed} tokens/s", { speed: metrics.tokens_per_second.toFixed(1) }));
  if (metrics.cold_start >= 0.1) parts.push(_("cold start {seconds} s", { seconds: metrics.cold_start.toFixed(1) }));
  if (cost) parts.push(`${cost.toLocaleString(undefined, { maximumSignificantDigits: 3 })} ${currency}`);
  return parts.join(" · ");
}

// -- the tabs

async function showCode() {
  const body = JSON.stringify({ input: form.readable(), files: form.uploads });
  const headers = { "content-type": "application/json" };
  byId("panel-code").innerHTML = await partOf(`${data.path}/code`, { method: "POST", headers, body });
}

async function showReadme() {
  const source = document.querySelector("#panel-readme .markdown-source");
  if (source === null) return;
  const { showMarkdown } = await import("./chat_markdown.js");
  const shown = document.createElement("div");
  shown.className = "markdown";
  showMarkdown(shown, source.textContent);
  source.replaceWith(shown);
}

async function open(name) {
  const panel = byId(`panel-${name}`);
  if (name === "code") return showCode();
  if (name !== "run" && panel.childElementCount === 0) {
    panel.innerHTML = await partOf(`${data.path}/panels/${name}`);
  }
  if (name === "readme") await showReadme();
}

byId("model-tabs").addEventListener("tab-chosen", ({ target }) => {
  const name = target.id.slice("tab-".length);
  setAddress("tab", name === "run" ? null : name);
  open(name).catch(showError);
});

// -- events

byId("inputs").addEventListener("submit", (event) => {
  event.preventDefault();
  void run();
});
byId("inputs").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void run();
});
cancelButton.addEventListener("click", () => void cancel());
document.addEventListener("visibilitychange", () => follower?.seen(!document.hidden));
addEventListener("pagehide", () => follower?.seen(false));
byId("history").addEventListener("click", ({ target }) => {
  const { again, use, kind } = target.dataset;
  if (again !== undefined) {
    form.fill(JSON.parse(again));
    void run();
  }
  if (use !== undefined) chooseUse(use, kind, data, form).catch(showError);
});

setRunning(false); // before this script ran, a click would have been lost
if (asked.get("run") && byId("run-error").textContent === "") follow(asked.get("run"));
const chosen = document.querySelector("#model-tabs [aria-selected=true]").id.slice("tab-".length);
if (chosen !== "run") open(chosen).catch(showError);
