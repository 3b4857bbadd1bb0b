// The dialog that finds models, predictions, pages, settings and pages of the manual.

import { detailOf, tellSessionEnded } from "./common.js";
import { _ } from "./texts.js";

const dialog = document.createElement("dialog");
dialog.className = "find";
dialog.setAttribute("aria-label", _("Find"));
const asked = document.createElement("div");
asked.className = "asked";
const lens = document.querySelector(".open-find svg");
if (lens !== null) asked.append(lens.cloneNode(true));
const input = Object.assign(document.createElement("input"), {
  type: "text", autocomplete: "off", spellcheck: false, placeholder: _("Models, predictions, pages, the manual"),
});
const list = Object.assign(document.createElement("ul"), { id: "found" });
const note = Object.assign(document.createElement("p"), { role: "status" });
for (const [name, value] of Object.entries({
  role: "combobox", "aria-label": _("Find"), "aria-expanded": "true", "aria-controls": "found", "aria-autocomplete": "list",
})) input.setAttribute(name, value);
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", _("Results"));
asked.append(input);
dialog.append(asked, list, note);
document.body.append(dialog);

let chosen = 0;
let request = null;

export function open() {
  if (dialog.open) return input.select();
  dialog.showModal();
  input.select();
  search();
}

function choose(number) {
  const items = [...list.children];
  if (items.length === 0) return input.removeAttribute("aria-activedescendant");
  chosen = (number + items.length) % items.length;
  items.forEach((item, index) => item.setAttribute("aria-selected", String(index === chosen)));
  input.setAttribute("aria-activedescendant", items[chosen].id);
  items[chosen].scrollIntoView({ block: "nearest" });
}

function show(results) {
  list.replaceChildren(
    ...results.map(({ kind, title, detail, path }, number) => {
      const item = Object.assign(document.createElement("li"), { id: `found-${number}` });
      item.setAttribute("role", "option");
      item.dataset.path = path;
      for (const [tag, text] of [["b", title], ["i", kind], ["span", detail]]) {
        if (text) item.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      return item;
    }),
  );
  list.hidden = results.length === 0;
  note.textContent = results.length === 0
    ? _("Nothing was found. Try fewer or other words.")
    : _("Arrow keys choose, Enter opens, Escape closes.");
  choose(0);
}

async function search() {
  request?.abort();
  const mine = (request = new AbortController());
  try {
    const url = new URL(`_ui/find?q=${encodeURIComponent(input.value)}`, document.baseURI);
    const reply = await fetch(url, { signal: mine.signal, headers: { accept: "application/json" } });
    if (reply.status === 401) {
      dialog.close();
      return tellSessionEnded();
    }
    if (!reply.ok) throw new Error(await detailOf(reply));
    const { results } = await reply.json();
    if (request === mine) show(results);
  } catch (error) {
    if (error.name === "AbortError") return;
    list.hidden = true;
    note.textContent = error instanceof TypeError ? _("The appliance does not answer.") : error.message;
  }
}

const go = (item) => item && location.assign(new URL(item.dataset.path, document.baseURI));

input.addEventListener("input", search);
input.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step === undefined && event.key !== "Enter") return;
  event.preventDefault();
  if (step) choose(chosen + step);
  else go(list.children[chosen]);
});
list.addEventListener("click", ({ target }) => go(target.closest("li")));
dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
