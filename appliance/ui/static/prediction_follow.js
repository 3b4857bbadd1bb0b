// Follows one prediction until it ends: its state by requests, its text by the stream of events. For model.js; texts
// about predictions also for compare_column.js.

import { _ } from "./texts.js";
import { api } from "./common.js";

export const ENDED = new Set(["succeeded", "failed", "canceled", "aborted"]);
export const INTERVAL = 1000; // milliseconds between two requests for the state of a prediction
const WAITS = {
  slot: _("waiting for its turn"),
  load: _("waiting until the model is loaded"),
  room: _("waiting for memory for the model"),
};

// The text of a status line. `loadSeconds` is how long the model takes to load, if that is known.
export function wordsOf(record, ended, loadSeconds = null) {
  if (ended) return "";
  const metrics = record.metrics ?? {};
  const seconds = (record.timeline ?? []).reduce((sum, phase) => sum + phase.seconds, 0);
  const waits = record.status === "starting" ? WAITS[metrics.waits_for] : undefined;
  const estimate = waits !== undefined && metrics.waits_for === "load" && loadSeconds;
  const passed = estimate
    ? _("{seconds} s of about {expected}", { seconds: seconds.toFixed(0), expected: loadSeconds.toFixed(0) })
    : `${seconds.toFixed(0)} s`;
  if (waits === undefined) return passed;
  const place = _("position {position}", { position: metrics.queue_position }); // apart: scripts/texts finds it
  return `${passed} · ${waits}, ${place}`;
}

// The last percentage in the logs of a prediction, as tqdm writes it; null without one.
export function percentOf(logs) {
  const found = [...logs.slice(-4000).matchAll(/(\d{1,3})%\|/g)].at(-1);
  return found === undefined ? null : Math.min(Number(found[1]), 100);
}

// Opens the stream of a prediction's output.
export function openStream(url) {
  const path = new URL(url).pathname; // begins with that of server.public_url
  return new EventSource(new URL(`_ui/api${path.slice(path.lastIndexOf("/v1/"))}`, document.baseURI));
}

export class Follower {
  record = null; // the prediction as /admin/predictions/{id} has it
  #stopped = false;
  #source = null;
  #wake = () => {};

  // `streams`: whether the output is text that comes in pieces. `stream`: the URL of the stream, if it is known. The
  // page's functions: `changed(record)` is called at each answer, `arrived(text)` with all text so far,
  // `refused(message)` if the API does not show the prediction.
  constructor(id, { streams, stream, changed, arrived, refused }) {
    this.id = id;
    this.streams = streams;
    this.changed = changed;
    this.arrived = arrived;
    this.refused = refused;
    if (!document.hidden) this.#listen(stream);
    void this.#follow();
  }

  // Stops following the prediction, which runs on.
  stop() {
    this.#stopped = true;
    this.#close();
    this.#wake();
  }

  wake() {
    this.#wake();
  }

  // Browsers have six connections to a server for all of their pages, so hidden pages close theirs.
  seen(visible) {
    if (visible) this.#wake();
    else this.#close();
  }

  async #follow() {
    if (this.#source !== null) await this.#pause(); // the first words should not wait for a second request
    while (!this.#stopped) {
      if (!document.hidden && (await this.#look())) return;
      await this.#pause();
    }
  }

  // Asks for the prediction once; returns whether there is nothing more to follow.
  async #look() {
    try {
      this.record = await (await api(`/admin/predictions/${this.id}`)).json();
    } catch (error) {
      if (error.status === undefined || error.status >= 500) return false; // it does not answer now
      if (!this.#stopped) this.refused(error.message);
      this.stop();
      return true;
    }
    if (this.#stopped) return true;
    const ended = ENDED.has(this.record.status);
    if (ended) this.stop();
    else this.#listen(this.record.urls.stream);
    this.changed(this.record);
    return ended;
  }

  #listen(url) {
    if (this.#source !== null || !this.streams || !url) return;
    const source = (this.#source = openStream(url));
    let text = "";
    let due = false;
    source.addEventListener("output", ({ data }) => {
      text += data;
      if (due) return;
      due = true;
      requestAnimationFrame(() => {
        due = false;
        if (!this.#stopped && this.#source === source) this.arrived(text);
      });
    });
    source.addEventListener("done", () => {
      source.close(); // the last text stays until the prediction has ended
      this.#wake();
    });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED && this.#source === source) this.#close();
    });
  }

  #close() {
    this.#source?.close();
    this.#source = null;
  }

  #pause() {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, INTERVAL);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
