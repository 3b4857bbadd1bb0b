// The machine page: buttons of models, disk clean-up, and the live log of a model.

import { confirmed } from "./confirm.js";
import { api, followEvents } from "./common.js";
import { _ } from "./texts.js";

const said = document.getElementById("said");

function say(text, wrong = false) {
  said.textContent = text;
  said.classList.toggle("wrong", wrong);
}

function refresh(...ids) {
  for (const id of ids) {
    const part = document.getElementById(id);
    if (part !== null) window.htmx?.trigger(part, "refresh");
  }
}

const acts = {
  async load(model) {
    say(_("{model} will be loaded as soon as there is memory for it.", { model }));
    await api(`/admin/models/${model}/load`, { method: "POST" });
    say(_("{model} is loaded.", { model }));
  },
  async unload(model) {
    const reply = await api(`/admin/models/${model}/unload`, { method: "POST" });
    const { state } = await reply.json();
    const texts = { draining: _("{model} will unload when its current runs finish.", { model }) };
    say(texts[state] ?? _("{model} is being unloaded.", { model }));
  },
  async pin(model) {
    const reply = await api(`/admin/models/${model}/pin`, { method: "POST" });
    say(_("{model} is pinned: it stays loaded. {detail}", { model, detail: (await reply.json()).detail }));
  },
  async unpin(model) {
    const reply = await api(`/admin/models/${model}/unpin`, { method: "POST" });
    say(_("{model} is no longer pinned. {detail}", { model, detail: (await reply.json()).detail }));
  },
  async reload() {
    const reply = await api("/admin/reload", { method: "POST" });
    say(reportOf(await reply.json()));
  },
  async prune() {
    const chosen = [...document.querySelectorAll("#unused input:checked")];
    if (chosen.length === 0) return say(_("Choose the weights to delete."), true);
    const size = readableBytes(chosen.reduce((sum, box) => sum + Number(box.dataset.size), 0));
    if (!(await confirmed(_("Delete {count} folders or files of weights, {size} in all? They would have to be downloaded again.", { count: chosen.length, size })))) return;
    const reply = await api("/admin/weights/prune", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ paths: chosen.map((box) => box.value) }),
    });
    say(_("Freed {size}.", { size: readableBytes((await reply.json()).freed) }));
    refresh("fold-unused", "disk", "alerts");
  },
};

// What a reload of models.yaml has changed.
function reportOf(report) {
  const lists = [
    [report.added, _("added")],
    [report.removed, _("removed")],
    [Object.keys(report.changed), _("changed")],
    [report.settings, _("settings")],
    [report.needs_restart, _("needs a restart")],
    [Object.keys(report.not_served), _("not served")],
  ];
  const texts = lists.filter(([names]) => names.length > 0).map(([names, text]) => `${text}: ${names.join(", ")}`);
  if (texts.length === 0) return _("models.yaml is applied: nothing has changed.");
  return _("models.yaml is applied: {changes}.", { changes: texts.join("; ") });
}

function readableBytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit += 1) count /= 1024;
  return `${count.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button[data-act]");
  if (button === null) return;
  const { act, model } = button.dataset;
  const done = acts[act](model).catch((error) => say(error.message, true));
  setTimeout(() => refresh("models", "devices"), 100); // the state has changed; the reply may come much later
  await done;
  refresh("models", "devices", "alerts");
});

// The live log: a stream for the chosen model while its fold is open.
const fold = document.getElementById("fold-logs");
const log = document.getElementById("log");
const choice = document.getElementById("log-model");
const MOST = 2000; // lines that stay in the page
let lines = [];
let stop = () => {}; // ends the stream

function follow() {
  stop();
  lines = [];
  log.textContent = "";
  if (!fold.open || !choice.value) return;
  stop = followEvents(`/admin/models/${choice.value}/logs/events`, {
    open() {
      lines = []; // after a lost connection, the stream begins with the last lines again
      log.textContent = _("{model} has no log output yet.", { model: choice.value });
    },
    lines({ data }) {
      const found = JSON.parse(data);
      const suffix = found.instance.slice(choice.value.length);
      lines.push(...found.lines.map((line) => (suffix ? `${suffix} ${line}` : line)));
      lines = lines.slice(-MOST);
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.textContent = lines.join("\n");
      if (atEnd) log.scrollTop = log.scrollHeight;
    },
  });
}

fold?.addEventListener("toggle", follow);
choice?.addEventListener("change", follow);
addEventListener("pagehide", () => stop());
