// Conversations as files.

import { _ } from "./texts.js";

export function exportAs(format, conversation) {
  const name = conversation.title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "chat";
  if (format === "json") {
    const { id, body } = conversation;
    save(`${name}.json`, "application/json", JSON.stringify({ id, ...body }, null, 2));
  } else save(`${name}.md`, "text/markdown", markdown(conversation));
}

// The branch that the page shows, as Markdown.
export function markdown({ title, settings, path }) {
  const parts = [`# ${title}`];
  if (settings.system?.trim()) parts.push(`## ${_("System prompt")}`, settings.system.trim());
  for (const message of path) {
    parts.push(`## ${author(message)}`);
    for (const { name } of message.images ?? []) parts.push(_("Image: {name}", { name }));
    for (const { name, text } of message.files ?? []) parts.push(_("File: {name}", { name }), fenced(text));
    if (message.reasoning) parts.push(message.reasoning.trim().replace(/^/gm, "> "));
    if (message.text) parts.push(message.text.trim());
    for (const call of message.tool_calls ?? []) parts.push(fenced(`${call.name}(${call.arguments})`));
  }
  return `${parts.join("\n\n")}\n`;
}

export function author(message) {
  if (message.role === "user") return _("You");
  return message.role === "tool" ? _("Result of the tool") : (message.model ?? _("Model"));
}

function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map(({ length }) => length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
