// The progress of a model that is being added: bytes, speed and remaining time, from the stream of its events.

import { api, followEvents, tell } from "./common.js";
import { _ } from "./texts.js";

const part = document.getElementById("addition");
const WINDOW = 10_000; // milliseconds over which the speed is measured
let seen = []; // [time, bytes] of the current step
let step = null;

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = number < 1024 ? 0 : Math.min(Math.floor(Math.log2(number) / 10), units.length - 1);
  return `${(number / 1024 ** power).toFixed(power > 0 ? 1 : 0)} ${units[power]}`;
}

function duration(seconds) {
  if (seconds < 60) return _("{seconds} s", { seconds: Math.ceil(seconds) });
  return _("{minutes} min", { minutes: Math.ceil(seconds / 60) });
}

function speed(done) {
  const now = performance.now();
  seen = [...seen.filter(([time]) => now - time <= WINDOW), [now, done]];
  const [start, before] = seen[0];
  return now - start < 1000 ? null : (1000 * (done - before)) / (now - start);
}

const STATES = {
  waiting: _("Waiting for other downloads"), downloading: _("Downloading"), applying: _("Writing models.yaml and reloading"),
};

function show(addition) {
  document.getElementById("state").textContent = STATES[addition.state] ?? addition.state;
  document.getElementById("step").textContent = addition.step;
  if (addition.step !== step) [step, seen] = [addition.step, []];
  const bar = document.getElementById("bar");
  const facts = [];
  if (addition.total) {
    [bar.max, bar.value] = [addition.total, addition.done];
    facts.push(_("{done} of {total}", { done: bytes(addition.done), total: bytes(addition.total) }));
  } else {
    bar.removeAttribute("value");
    if (addition.done) facts.push(bytes(addition.done));
  }
  const rate = addition.done ? speed(addition.done) : null;
  if (rate > 0) {
    facts.push(_("{speed} per second", { speed: bytes(rate) }));
    if (addition.total) facts.push(_("{time} left", { time: duration((addition.total - addition.done) / rate) }));
  }
  document.getElementById("figures").textContent = facts.join(" · ");
}

if (part !== null && "running" in part.dataset) {
  const path = `/admin/additions/${part.dataset.id}`;
  const stop = followEvents(`${path}/events`, {
    progress: ({ data }) => show(JSON.parse(data)),
    done() {
      stop();
      location.reload();
    },
  });
  addEventListener("pagehide", stop);
  const cancel = document.getElementById("cancel");
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    try {
      await api(`${path}/cancel`, { method: "POST" });
    } catch (error) {
      tell(error.message);
      cancel.disabled = false;
    }
  });
}
