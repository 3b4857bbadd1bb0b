// The page /compare: one prompt for several models or settings. What is asked and the ids of the predictions are in the
// address and in the state of the history entry, so that going back and reloading restore them.

import { _ } from "./texts.js";
import { Column } from "./compare_column.js";
import { markdownOf, showSummary, summaryOf } from "./compare_summary.js";

const LONGEST = 6000; // characters of an address; a longer prompt is only in the history entry and in the predictions
const DELAY = 300; // milliseconds from an edit to the change of the address

const byId = (id) => document.getElementById(id);

class Comparison {
  #columns = [];
  #timer = null; // of the change of the address
  #restoring = false;
  #promptIsMissing = false; // whether the address was too short for it
  #shownAddress = "";
  #prompt = byId("prompt");
  #seed = byId("seed");
  #mayRun = !byId("run").disabled;

  constructor({ models, least, most, currency }) {
    this.models = new Map(models.map((model) => [model.name, model]));
    this.least = least;
    this.most = most;
    this.currency = currency;
    this.#listen();
    const before = history.state?.columns ? history.state : this.#stateOfAddress();
    this.#show({ ...before, prompt: before.prompt || this.#prompt.value }); // typed while this script was loading
    this.#keep();
  }

  // -- methods that the columns call

  changed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#keep(), DELAY);
    this.update();
  }

  started() {
    this.#keep(); // at once: a reload must find the prediction
  }

  leaving() {
    this.#keep(true); // a result is about to be dropped: going back shows it again
  }

  ended() {
    const any = this.#columns.some((column) => column.record !== null || column.failure);
    byId("summary").hidden = !any;
    if (any) showSummary(byId("summary").querySelector("table"), summaryOf(this.#columns, this.currency));
    if (this.#promptIsMissing) this.#restorePrompt();
  }

  update() {
    const columns = this.#columns;
    const running = columns.some((column) => column.running);
    byId("run").disabled = running || !this.#mayRun;
    byId("stop").disabled = !running;
    byId("add").disabled = columns.length >= this.most || running;
    for (const column of columns) {
      column.find(".remove").disabled = columns.length <= this.least || running;
      column.describe(this.#seed.value !== "");
    }
  }

  remove(column) {
    if (column.run !== null) this.#keep(true);
    column.leave();
    column.element.remove();
    this.#columns = this.#columns.filter((each) => each !== column);
    this.#columns.forEach((each, index) => (each.number = index + 1));
    this.#keep();
    this.update();
    this.ended();
  }

  enlarge(column, url, alt) {
    const dialog = byId("large");
    Object.assign(dialog.querySelector("img"), { src: url, alt });
    const used = column.record?.input?.seed ?? /seed: (\d+)/i.exec(column.record?.logs ?? "")?.[1];
    const seed = used === undefined ? "" : _("seed {seed}", { seed: used });
    dialog.querySelector("p").textContent = [column.model, seed].filter(Boolean).join(" · ");
    dialog.showModal();
  }

  // -- the address

  #state() {
    return { prompt: this.#prompt.value, seed: this.#seed.value, columns: this.#columns.map(stateOf) };
  }

  #stateOfAddress() {
    const query = new URLSearchParams(location.search);
    const [inputs, runs] = [query.getAll("input"), query.getAll("run")];
    const columns = query.getAll("model").slice(0, this.most).map((model, index) => ({
      model,
      input: objectOf(inputs[index]),
      run: runs[index] || null,
    }));
    return { prompt: query.get("prompt") ?? "", seed: query.get("seed") ?? "", columns };
  }

  // Puts the state into the address: into a new entry of the history, or into the current one.
  #keep(push = false) {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#restoring) return;
    const now = this.#state();
    this.#shownAddress = addressOf(now);
    if (push) history.pushState(now, "", this.#shownAddress);
    else history.replaceState(now, "", this.#shownAddress);
    const skip = document.querySelector("a.skip");
    if (skip !== null) skip.href = `${this.#shownAddress}#main`;
  }

  // -- the columns

  #show(now) {
    this.#restoring = true;
    for (const column of this.#columns) column.leave();
    this.#prompt.value = now.prompt;
    this.#promptIsMissing = now.prompt === "" && now.columns.some((column) => column.run !== null);
    this.#seed.value = now.seed;
    this.#columns = [];
    const wanted = this.#filledUp(now.columns);
    wanted.forEach((each, index) => this.#columns.push(new Column(this, index + 1, each)));
    byId("columns").replaceChildren(...this.#columns.map((column) => column.element));
    this.#restoring = false;
    this.update();
    this.ended();
  }

  // Adds columns up to the least number, with models that are like the first one.
  #filledUp(columns) {
    const models = [...this.models.values()];
    const usual = models.find((model) => model.streams) ?? models.find(({ output }) => output === "files") ?? models[0];
    const first = this.models.get(columns[0]?.model) ?? usual;
    const alike = models.filter((model) => model.output === first.output && model.streams === first.streams);
    const wanted = [...columns];
    for (let index = wanted.length; index < this.least; index += 1) {
      wanted.push({ model: (alike[index] ?? alike[0]).name, input: {}, run: null });
    }
    return wanted;
  }

  #add() {
    const { model, openInput: input, secrets } = this.#columns.at(-1);
    const added = new Column(this, this.#columns.length + 1, { model, input, secrets });
    this.#columns.push(added);
    byId("columns").append(added.element);
    this.#keep();
    this.update();
    added.find("select.model").focus();
  }

  // A prompt that is too long for the address comes back from a prediction.
  #restorePrompt() {
    const column = this.#columns.find((each) => each.record?.input);
    if (!column) return;
    this.#promptIsMissing = false;
    const name = this.models.get(column.model)?.prompt;
    if (this.#prompt.value === "") this.#prompt.value = column.record.input[name] ?? "";
  }

  async #run() {
    const columns = this.#columns;
    if (!this.#valid()) return;
    byId("run").disabled = true;
    const valid = [];
    for (const column of columns) valid.push(await column.valid());
    this.update();
    if (valid.includes(false)) return;
    if (columns.some((column) => column.run !== null)) this.#keep(true);
    byId("summary").hidden = true;
    const seed = this.#seed.value === "" ? null : Number(this.#seed.value);
    for (const column of columns) void column.start(this.#prompt.value, seed);
    this.#keep();
    const narrow = matchMedia("(max-width: 640px)").matches;
    if (narrow) columns[0].find(".line").scrollIntoView({ block: "start" });
  }

  // Says what is wrong with the prompt or the seed; returns whether both can be sent.
  #valid() {
    const number = Number(this.#seed.value);
    const whole = !this.#seed.validity.badInput && number >= 0 && Number.isInteger(number);
    this.#prompt.setCustomValidity(this.#prompt.value.trim() === "" ? _("Write a prompt.") : "");
    this.#seed.setCustomValidity(whole ? "" : _("The seed must be a whole number from 0."));
    return this.#prompt.reportValidity() && this.#seed.reportValidity();
  }

  async #copy() {
    const text = markdownOf(this.#prompt.value, summaryOf(this.#columns, this.currency));
    const copied = await copyText(text);
    byId("copied").textContent = copied ? _("Copied") : _("The browser does not allow copying here.");
  }

  #listen() {
    const form = byId("compare");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#run();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    for (const control of [this.#prompt, this.#seed]) {
      control.addEventListener("input", () => {
        control.setCustomValidity("");
        this.changed();
      });
    }
    byId("dice").addEventListener("click", () => {
      this.#seed.value = String(Math.floor(Math.random() * 2 ** 31));
      this.changed();
    });
    byId("stop").addEventListener("click", () => this.#columns.forEach((column) => void column.stop()));
    byId("add").addEventListener("click", () => this.#add());
    byId("copy").addEventListener("click", () => void this.#copy());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden && this.#timer !== null) this.#keep();
      for (const column of this.#columns) column.seen(!document.hidden);
    });
    addEventListener("pagehide", () => this.#timer !== null && this.#keep());
    addEventListener("popstate", ({ state }) => {
      const unchanged = location.href.split("#")[0] === this.#shownAddress; // a link to a part of the page
      if (state !== null || !unchanged) this.#show(state ?? this.#stateOfAddress());
    });
  }
}

// What the address and the history may have of a column: no secrets.
function stateOf(column) {
  return { model: column.model, input: column.openInput, run: column.run };
}

function addressOf({ prompt, seed, columns }) {
  const query = new URLSearchParams();
  if (prompt) query.set("prompt", prompt);
  if (seed) query.set("seed", seed);
  for (const { model, input, run } of columns) {
    query.append("model", model);
    query.append("input", Object.keys(input).length === 0 ? "" : JSON.stringify(input));
    query.append("run", run ?? "");
  }
  if (query.toString().length > LONGEST) query.delete("prompt");
  return new URL(`compare?${query}`, document.baseURI).href;
}

function objectOf(text) {
  try {
    const found = JSON.parse(text);
    return found !== null && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {}; // the address was edited
  }
}

async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return true;
  }
  // Browsers have no clipboard for pages without TLS.
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

const data = byId("data");
if (data !== null) new Comparison(JSON.parse(data.textContent));
