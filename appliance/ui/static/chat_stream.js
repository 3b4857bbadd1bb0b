// Streams of chat completions: requests, server-sent events, and how their chunks become an answer.

import { detailOf, setConnected, tellSessionEnded } from "./common.js";
import { _ } from "./texts.js";

// The model or the API has refused or failed; the message is for people. Other errors are lost connections.
export class AnswerFailed extends Error {}

// Sends a request for a streamed chat completion. Calls `begun` with the id of its prediction, then `received` with
// each chunk.
export async function complete(body, { signal, begun, received }) {
  let reply;
  try {
    reply = await fetch(new URL("_ui/api/openai/v1/chat/completions", document.baseURI), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
  } catch (error) {
    if (error.name !== "AbortError") setConnected(false);
    throw error;
  }
  if (document.body.classList.contains("stale")) setConnected(true);
  if (reply.status === 401) tellSessionEnded();
  const prediction = reply.headers.get("x-request-id");
  if (prediction !== null) begun(prediction);
  if (!reply.ok) throw new AnswerFailed(await problemOf(reply));
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new AnswerFailed(chunk.error.message ?? _("The model failed."));
    received(chunk);
  }
  throw new TypeError("the stream has no end");
}

async function problemOf(reply) {
  const copy = reply.clone();
  try {
    return (await reply.json()).error.message;
  } catch {
    return detailOf(copy);
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length > 0) yield lines.map((line) => line.slice("data: ".length)).join("\n");
    }
  }
}

// Adds a chunk to an answer. Returns whether the chunk had text, reasoning or a tool call.
export function addChunk(message, chunk) {
  if (chunk.usage) {
    message.metrics = {
      ...message.metrics,
      input_tokens: chunk.usage.prompt_tokens,
      output_tokens: chunk.usage.completion_tokens,
    };
  }
  const choice = chunk.choices?.[0];
  if (choice === undefined) return false;
  if (choice.finish_reason) message.finish_reason = choice.finish_reason;
  const { content, tool_calls: calls, ...delta } = choice.delta ?? {};
  const reasoning = delta.reasoning ?? delta.reasoning_content;
  if (content) message.text += content;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const call of calls ?? []) addCall(message, call);
  return Boolean(content || reasoning || calls?.length);
}

function addCall(message, { index, id, function: called }) {
  message.tool_calls ??= [];
  message.tool_calls[index] ??= { id: "", name: "", arguments: "" };
  const known = message.tool_calls[index];
  if (id) known.id = id;
  known.name += called?.name ?? "";
  known.arguments += called?.arguments ?? "";
}

// Returns the messages of a request for the branch `path` of a conversation.
export function requestMessages(settings, path) {
  const found = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const message of path) {
    const last = found.at(-1);
    const next = requestMessage(message);
    if (next === null) continue;
    // After a failed answer there are two user messages in a row, which the chat templates of some models refuse.
    const joins = last?.role === "user" && next.role === "user";
    if (joins && typeof last.content === "string" && typeof next.content === "string") {
      last.content += `\n\n${next.content}`;
    } else found.push(next);
  }
  return found;
}

function requestMessage(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.tool_call, content: message.text };
  if (message.role === "assistant") {
    const calls = (message.tool_calls ?? []).map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
    if (message.text === "" && calls.length === 0) return null;
    return { role: "assistant", content: message.text, ...(calls.length > 0 && { tool_calls: calls }) };
  }
  const files = (message.files ?? []).map(({ name, text }) => `${name}:\n\n${text}`);
  const text = [...files, message.text].filter((part) => part !== "").join("\n\n");
  if (!message.images?.length) return { role: "user", content: text };
  const images = message.images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...images, ...(text === "" ? [] : [{ type: "text", text }])] };
}
