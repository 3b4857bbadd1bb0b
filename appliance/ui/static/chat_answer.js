// Makes answers, and completes those that were cut off when a page was left.

import { api } from "./common.js";
import { newId } from "./chat_conversation.js";
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

// Whether the appliance may know more of an answer than its conversation has.
export function isIncomplete({ state, prediction }) {
  return state === "streaming" || (state === "interrupted" && Boolean(prediction));
}

// Completes an answer that was being written when its page was left or lost its connection: the appliance has the
// output of its prediction. `changed` is called when there is something new to show, `ended` when there is something
// new to store.
export async function recover(conversation, id, { changed, ended }) {
  while (!conversation.deleted) {
    const found = await predictionOf(conversation.messages.get(id));
    const message = conversation.messages.get(id); // another copy of the conversation may have replaced it
    if (found === SIGNED_OUT || !isIncomplete(message)) return;
    if (found !== UNKNOWN) {
      const before = JSON.stringify(message);
      update(message, found);
      if (JSON.stringify(message) !== before) {
        changed();
        if (message.state !== "streaming") ended();
      }
      if (message.state !== "streaming") return;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL));
  }
}

const UNKNOWN = Symbol("the appliance did not tell");
const SIGNED_OUT = Symbol("the session has ended");

// Returns the prediction of a message; null if there is none, or if it was deleted.
async function predictionOf({ prediction }) {
  if (!prediction) return null;
  try {
    return await (await api(`/v1/predictions/${prediction}`)).json();
  } catch (error) {
    if (error.status === 404) return null;
    return error.status === 401 ? SIGNED_OUT : UNKNOWN;
  }
}

function update(message, prediction) {
  const chunks = Array.isArray(prediction?.output) ? prediction.output : [];
  if (chunks.length > 0) takeOver(message, chunks);
  const states = { starting: "streaming", processing: "streaming", succeeded: "complete", failed: "failed" };
  message.state = states[prediction?.status] ?? "interrupted";
  if (message.state === "failed") message.error = prediction.error ?? _("The model failed.");
}

function takeOver(message, chunks) {
  const whole = { text: "" };
  for (const chunk of chunks) addChunk(whole, chunk);
  const longer = whole.text.length >= message.text.length;
  Object.assign(message, whole, { text: longer ? whole.text : message.text });
}
