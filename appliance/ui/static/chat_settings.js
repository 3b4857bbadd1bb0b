// The panel with the settings of a conversation.

import { _ } from "./texts.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const TEXTS = ["system", "tools"];
const panel = document.getElementById("settings");
const opener = document.getElementById("open-settings");

// Calls `changed` with the settings when the user has changed them.
export function listenToSettings(changed, mayRun) {
  const toggle = (open) => {
    panel.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    (open ? field("system") : opener).focus();
  };
  opener.addEventListener("click", () => toggle(panel.hidden));
  document.getElementById("close-settings").addEventListener("click", () => toggle(false));
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") toggle(false);
  });
  for (const name of [...NUMBERS, ...TEXTS]) field(name).disabled = !mayRun;
  panel.addEventListener("change", () => changed(read()));
}

export function showSettings(settings) {
  for (const name of [...NUMBERS, ...TEXTS]) field(name).value = settings[name] ?? "";
  showProblem();
}

// Returns why no message can be sent with these settings; empty if it can.
export function problemOf(settings) {
  if (!settings.tools?.trim()) return "";
  try {
    const tools = JSON.parse(settings.tools);
    if (Array.isArray(tools) && tools.length > 0 && tools.every((tool) => tool?.type === "function")) return "";
  } catch (error) {
    return _("The tools are not valid JSON: {reason}", { reason: error.message });
  }
  return _('The tools must be a JSON array of objects such as {"type": "function", "function": …}.');
}

function read() {
  showProblem();
  const found = {};
  for (const name of TEXTS) if (field(name).value.trim() !== "") found[name] = field(name).value;
  for (const name of NUMBERS) {
    const { value, validity } = field(name);
    if (value !== "" && validity.valid) found[name] = Number(value);
    field(name).setAttribute("aria-invalid", String(!validity.valid));
  }
  return found;
}

function showProblem() {
  const problem = document.getElementById("tools-problem");
  problem.textContent = problemOf({ tools: field("tools").value });
  problem.hidden = problem.textContent === "";
}

function field(name) {
  return panel.querySelector(`[name="${name}"]`);
}
