// Markdown of models as HTML: sanitized, without anything that other servers would have to send.

import { marked } from "./vendor/marked.min.js";
import "./vendor/purify.min.js";
import { _ } from "./texts.js";

const purify = globalThis.DOMPurify;
const LONGEST_HIGHLIGHTED = 20_000; // characters
const RULES = {
  ALLOWED_TAGS: [
    ..."a b blockquote br code del em h3 h4 h5 h6 hr i li ol p pre s span strong sub sup".split(" "),
    ..."table tbody td th thead tr u ul".split(" "),
  ],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);

marked.use({
  gfm: true,
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6); // the page has h1, and each message h2
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escaped(text)),
    // Loading an image from another server would reveal the conversation to that server.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || _("image"))}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const shown = new WeakMap(); // element -> the Markdown of each of its blocks
let highlighter = null;

// Shows Markdown in an element. Only blocks that have changed are replaced, so that a selection in others stays.
export function showMarkdown(element, text) {
  const tokens = marked.lexer(text);
  const blocks = tokens.filter(({ type }) => type !== "space" && type !== "def");
  const before = shown.get(element) ?? [];
  blocks.forEach((block, number) => {
    if (before[number] === block.raw) return;
    const made = document.createElement("div");
    made.className = "block";
    const html = marked.parser(Object.assign([block], { links: tokens.links }));
    made.append(purify.sanitize(html, RULES));
    for (const table of made.querySelectorAll("table")) table.tabIndex = 0; // it may scroll
    for (const code of made.querySelectorAll("pre > code")) decorate(code);
    if (number < element.children.length) element.children[number].replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
  shown.set(element, blocks.map(({ raw }) => raw));
}

function decorate(code) {
  const language = /(?:^|\s)language-(\S+)/.exec(code.className)?.[1] ?? "";
  const frame = document.createElement("div");
  frame.className = "code";
  const head = document.createElement("div");
  const name = document.createElement("span");
  name.textContent = language;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = _("Copy code");
  button.addEventListener("click", () => copy(code.textContent, button));
  head.append(name, button);
  const pre = code.parentElement;
  pre.replaceWith(frame);
  pre.tabIndex = 0; // it may scroll
  frame.append(head, pre);
  if (language !== "") void highlight(code, language);
}

async function highlight(code, language) {
  const text = code.textContent;
  if (text.length > LONGEST_HIGHLIGHTED) return;
  highlighter ??= import("./vendor/highlight.min.js").then((module) => module.default);
  const library = await highlighter;
  if (library.getLanguage(language) === undefined) return;
  const { value } = library.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(purify.sanitize(value, RULES));
}

// Copies text to the clipboard, and says so on the button for a moment.
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // browsers have no clipboard on pages of plain HTTP
  }
  const before = button.dataset.text ?? button.textContent;
  button.dataset.text = before;
  button.textContent = _("Copied");
  setTimeout(() => (button.textContent = before), 1500);
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
