// The editor of a config file: line numbers, completion, mistakes at their lines, and the change before it is applied.

import { suggest } from "./config_completion.js";
import { api } from "./common.js";
import { keepForTab } from "./inputs.js";
import { _ } from "./texts.js";

const PAUSE = 500; // milliseconds without a key after which the text is checked
const LINE = 20; // pixels: line-height in config.css
const PADDING = 9.6; // pixels: padding of the textarea

const at = (id) => document.getElementById(id);
const [editor, area, problems, list] = [at("editor"), at("text"), at("problems"), document.createElement("ul")];
const numbers = editor.querySelector(".numbers");
const rest = JSON.parse(at("rest").textContent);
const first = rest.before.split("\n").length; // line of the file at which the textarea begins
const file = editor.dataset.file;
let saved = area.value;
let savedChecksum = editor.dataset.checksum; // of the file that has this text
let checksum = savedChecksum; // of the file that the text in the editor began with
let schema = null;
let chosen = -1;
let offered = null;
const draft = `config:${location.pathname}:${file}`; // key of the text that is not applied yet

const whole = () => {
  const text = area.value.endsWith("\n") || rest.after === "" ? area.value : `${area.value}\n`;
  return rest.before + text + rest.after;
};

function json(method, path, body) {
  return api(path, { method, body: JSON.stringify(body), headers: { "content-type": "application/json" } });
}

// -- lines and mistakes

function drawNumbers(wrong = new Set()) {
  const count = area.value.split("\n").length;
  numbers.replaceChildren();
  for (let line = first; line < first + count; line++) {
    const number = document.createElement(wrong.has(line) ? "b" : "span");
    number.textContent = line;
    numbers.append(number, "\n");
  }
  area.style.height = `${Math.max(count, 6) * LINE + 2 * PADDING + 18}px`;
  numbers.scrollTop = area.scrollTop;
}

function goTo(line) {
  const before = area.value.split("\n").slice(0, line - first).join("\n").length;
  area.focus();
  area.setSelectionRange(before + (line > first ? 1 : 0), before + (line > first ? 1 : 0));
  area.scrollTop = Math.max(0, (line - first - 3) * LINE);
}

function showProblems(found) {
  problems.replaceChildren(...found.map((each) => {
    const item = document.createElement("li");
    const here = each.line !== null && each.file === file && each.line >= first && each.line < first + area.value.split("\n").length;
    if (here) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = _("Line {line}", { line: each.line });
      button.addEventListener("click", () => goTo(each.line));
      item.append(button);
    } else if (each.line !== null) item.append(`${each.file}:${each.line}: `);
    const names = [each.model && _("model {name}", { name: each.model }), each.key && _("key {key}", { key: each.key })];
    item.append([...names.filter(Boolean), each.message].join(": "));
    return item;
  }));
  drawNumbers(new Set(found.filter((each) => each.file === file).map((each) => each.line)));
}

const said = (message) => [{ file: null, line: null, model: null, key: null, message }];

// Returns what the text would change; null if it has mistakes, which are then shown.
let checks = 0;
async function check() {
  const number = ++checks;
  try {
    const found = await (await json("POST", "/admin/config/check", { file, text: whole() })).json();
    if (number !== checks) return null;
    showProblems(found.problems);
    return found.problems.length === 0 ? found : null;
  } catch (error) {
    if (number === checks) showProblems(said(error.message));
    return null;
  }
}

let timer = null;
function edited() {
  const changed = area.value !== saved;
  if (changed) keepForTab(draft, { checksum, text: area.value });
  else {
    sessionStorage.removeItem(draft);
    checksum = savedChecksum;
  }
  for (const id of ["review", "discard"]) if (at(id) !== null) at(id).disabled = !changed;
  drawNumbers();
  checks++; // a check of the text before is out of date
  clearTimeout(timer);
  timer = setTimeout(check, PAUSE);
}

// -- the change

function line(text) {
  const span = document.createElement("span");
  span.textContent = text;
  span.className = text.startsWith("+") ? "added" : text.startsWith("-") ? "removed" : text.startsWith("@@") ? "place" : "";
  return span;
}

function report(changes) {
  const lines = changes.added.map((name) => _("Adds {name}", { name }));
  lines.push(...changes.removed.map((name) => _("Removes {name}", { name })));
  lines.push(...Object.entries(changes.changed).map(([name, keys]) => _("Changes {name}: {keys}", { name, keys: keys.join(", ") })));
  if (changes.settings.length) lines.push(_("Changes {keys}", { keys: changes.settings.join(", ") }));
  if (changes.needs_restart.length) lines.push(_("Takes effect after a restart: {keys}", { keys: changes.needs_restart.join(", ") }));
  lines.push(...Object.entries(changes.not_served ?? {}).map(([name, why]) => _("{name} cannot be served yet: {why}", { name, why })));
  return lines.length ? lines : [_("The new text changes no model and no setting.")];
}

function paragraphs(lines) {
  return lines.map((text) => Object.assign(document.createElement("p"), { textContent: text }));
}

async function review() {
  clearTimeout(timer);
  const found = await check();
  if (found === null) return;
  at("summary").replaceChildren(...paragraphs(report(found.changes)));
  const shown = found.diff.split("\n").filter((each) => each !== "" && !/^(\+\+\+|---) /.test(each));
  at("difference").replaceChildren(...shown.map(line));
  at("changes").showModal();
}

async function apply() {
  at("apply").disabled = true;
  at("result").textContent = _("Applying the change ...");
  try {
    const found = await (await json("PUT", "/admin/config/file", { file, text: whole(), checksum })).json();
    sessionStorage.removeItem(draft);
    [checksum, savedChecksum, saved] = [found.checksum, found.checksum, area.value];
    at("result").textContent = [_("Applied."), ...report(found.reload)].join(" ");
    edited();
  } catch (error) {
    at("result").textContent = "";
    showProblems(said(error.message));
  }
  at("apply").disabled = false;
  at("changes").close();
}

// -- completion

list.className = "suggestions";
list.id = "suggestions";
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", _("Keys and values"));
list.hidden = true;
editor.append(list);
area.setAttribute("aria-controls", list.id);

function close() {
  list.hidden = true;
  area.removeAttribute("aria-activedescendant");
}

function choose(index) {
  chosen = index;
  [...list.children].forEach((item, number) => {
    item.setAttribute("aria-selected", String(number === chosen));
    if (number === chosen) item.scrollIntoView({ block: "nearest" });
  });
  area.setAttribute("aria-activedescendant", `suggestion-${chosen}`);
}

function take(index) {
  const { start, words } = offered;
  area.setRangeText(words[index].insert, start, area.selectionStart, "end");
  close();
  edited();
}

async function offer(asked) {
  schema ??= await (await api("/admin/config/schema")).json();
  const position = rest.before.length + area.selectionStart;
  offered = suggest(schema, rest.before + area.value + rest.after, position, asked);
  if (offered === null || offered.words.length === 0) return close();
  offered.start -= rest.before.length;
  list.replaceChildren(...offered.words.map((word, index) => {
    const item = document.createElement("li");
    item.id = `suggestion-${index}`;
    item.setAttribute("role", "option");
    item.append(word.text);
    if (word.about) item.append(Object.assign(document.createElement("small"), { textContent: word.about }));
    item.addEventListener("mousedown", (event) => {
      event.preventDefault();
      take(index);
    });
    return item;
  }));
  const lines = area.value.slice(0, offered.start).split("\n");
  const context = document.createElement("canvas").getContext("2d");
  context.font = getComputedStyle(area).font;
  const left = area.offsetLeft + PADDING + context.measureText(lines.at(-1)).width - area.scrollLeft;
  list.style.left = `${Math.max(0, Math.min(left, editor.clientWidth - 220))}px`;
  const below = PADDING + lines.length * LINE - area.scrollTop;
  list.hidden = false;
  list.style.top = `${below + list.offsetHeight > editor.clientHeight ? Math.max(0, below - LINE - list.offsetHeight) : below}px`;
  choose(0);
}

area.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.code === "Space") {
    event.preventDefault();
    offer(true).catch((error) => showProblems(said(error.message)));
    return;
  }
  if (list.hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  const count = list.children.length;
  if (event.key === "ArrowDown") choose((chosen + 1) % count);
  else if (event.key === "ArrowUp") choose((chosen + count - 1) % count);
  else if (event.key === "Enter") take(chosen);
  else if (event.key === "Escape") close();
  else return;
  event.preventDefault();
});
area.addEventListener("input", (event) => {
  edited();
  if (event.inputType === "insertText" && /[\w-]/.test(event.data ?? "")) offer(false).catch(close);
  else close();
});
area.addEventListener("blur", close);
area.addEventListener("scroll", () => {
  numbers.scrollTop = area.scrollTop;
  close();
});

at("review")?.addEventListener("click", review);
at("discard")?.addEventListener("click", () => {
  area.value = saved;
  edited();
});
at("apply").addEventListener("click", apply);
at("back").addEventListener("click", () => at("changes").close());

const kept = JSON.parse(sessionStorage.getItem(draft) ?? "null");
if (kept !== null && !area.readOnly) {
  area.value = kept.text;
  checksum = kept.checksum; // a file that was changed since is a conflict
  edited();
} else drawNumbers();
