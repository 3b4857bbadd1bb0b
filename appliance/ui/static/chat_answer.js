// Makes answers, and completes those that were cut off when a page was left.

import { api } from "./frame.js";
import { newId, SAVE_INTERVAL } from "./chat_conversation.js";
import { addChunk, AnswerFailed, complete, requestMessages } from "./chat_stream.js";
import { _ } from "./texts.js";

const POLL_INTERVAL = 2000; // milliseconds between looks at a prediction that another page follows

export function newMessage(role, parent, fields = {}) {
  return { id: newId(), parent, role, text: "", created_at: new Date().toISOString(), ...fields };
}

// Lets the model answer the last message of the conversation. `changed` is called when there is something new to show,
// `failed` with the error if the answer cannot be stored.
export async function answer(conversation, { changed, failed }) {
  const messages = requestMessages(conversation.settings, conversation.path);
  const message = newMessage("assistant", conversation.leaf, { model: conversation.model, state: "streaming" });
  conversation.add(message);
  conversation.answering = new AbortController();
  changed();
  const store = () => conversation.save().catch(failed);
  void store();
  const saving = setInterval(store, SAVE_INTERVAL);
  const began = performance.now();
  let first = null;
  try {
    await complete(requestBody(conversation, messages), {
      signal: conversation.answering.signal,
      begun(prediction) {
        message.prediction = prediction;
        void store();
      },
      received(chunk) {
        if (addChunk(message, chunk)) first ??= performance.now();
        changed();
      },
    });
    message.state = "complete";
  } catch (error) {
    message.state = stateAfter(error);
    if (error instanceof AnswerFailed) message.error = error.message;
  } finally {
    clearInterval(saving);
    conversation.answering = null;
    measure(message, began, first);
    if (message.tool_calls) message.tool_calls = message.tool_calls.filter(Boolean);
    changed();
    await store();
  }
  return message;
}

function requestBody({ model, settings }, messages) {
  const body = { model, messages };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings[name] !== undefined && settings[name] !== null) body[name] = settings[name];
  }
  if (settings.tools?.trim()) body.tools = JSON.parse(settings.tools);
  return body;
}

function stateAfter(error) {
  if (error.name === "AbortError") return "stopped";
  return error instanceof AnswerFailed ? "failed" : "interrupted";
}

function measure(message, began, first) {
  if (first === null) return;
  const rounded = (milliseconds) => Math.round(milliseconds) / 1000;
  message.metrics = {
    ...message.metrics,
    time_to_first_token: rounded(first - began),
    seconds: rounded(performance.now() - first),
  };
}

// Completes an answer that was being written when its page was left: the appliance has the output of its prediction.
export async function recover(conversation, message, changed) {
  while (message.state === "streaming" && !conversation.deleted) {
    const prediction = message.prediction ? await predictionOf(message.prediction) : null;
    const chunks = Array.isArray(prediction?.output) ? prediction.output : [];
    if (chunks.length > 0) takeOver(message, chunks);
    if (prediction === null || !["starting", "processing"].includes(prediction.status)) {
      message.state = { succeeded: "complete", failed: "failed" }[prediction?.status] ?? "interrupted";
      if (message.state === "failed") message.error = prediction.error ?? _("The model failed.");
      changed();
      return;
    }
    changed();
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL));
  }
}

async function predictionOf(id) {
  try {
    return await (await api(`/v1/predictions/${id}`)).json();
  } catch {
    return null; // it was deleted
  }
}

function takeOver(message, chunks) {
  const whole = { text: "" };
  for (const chunk of chunks) addChunk(whole, chunk);
  const longer = whole.text.length >= message.text.length;
  Object.assign(message, whole, { text: longer ? whole.text : message.text });
}
