// The card with the first steps: a run, a token, and lines to copy.

import "./tabs.js";
import { api, tell, toast } from "./common.js";
import { _ } from "./texts.js";
import "./tabs.js";

const form = document.getElementById("first-run");
const output = document.getElementById("first-output");
const LAST = new Set(["succeeded", "failed", "canceled", "aborted"]);

const element = (tag, values) => Object.assign(document.createElement(tag), values);

// Shows text, files and anything else of an output; files of other servers are links.
function show(prediction) {
  const values = Array.isArray(prediction.output) ? prediction.output : [prediction.output];
  const files = values.filter((value) => typeof value === "string" && /^https?:/.test(value) && URL.canParse(value));
  const made = [];
  if (files.length === values.length && files.length > 0) {
    for (const file of files) {
      const url = new URL(file);
      const here = url.origin === location.origin;
      if (here && /\.(png|jpe?g|webp|gif)$/i.test(url.pathname)) made.push(element("img", { src: file, alt: _("Output") }));
      else if (here && /\.(wav|mp3|ogg|flac)$/i.test(url.pathname)) made.push(element("audio", { src: file, controls: true }));
      else made.push(element("a", { href: file, textContent: file }));
    }
  } else if (prediction.output != null) {
    const text = values.every((value) => typeof value === "string") ? values.join("") : JSON.stringify(prediction.output);
    made.push(element("pre", { textContent: text.length > 600 ? `${text.slice(0, 600)}…` : text }));
  }
  if (prediction.error) made.push(element("p", { className: "wrong", textContent: prediction.error }));
  if (LAST.has(prediction.status)) {
    const links = element("p", {});
    links.append(
      element("a", { href: `./${form.dataset.model}`, textContent: _("Open the page of the model") }), " · ",
      element("a", { href: `./p/${prediction.id}`, textContent: _("Open this prediction") }),
    );
    made.push(links);
  } else made.push(element("p", { textContent: _("Running: the first run loads the model, which takes a moment.") }));
  output.replaceChildren(...made);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const input = { [form.dataset.field]: document.getElementById("first-input").value };
    const created = await api(`/v1/models/${form.dataset.model}/predictions`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ input }),
    });
    let prediction = await created.json();
    while (!LAST.has(prediction.status)) {
      show(prediction);
      await new Promise((resolve) => setTimeout(resolve, 250));
      prediction = await (await api(`/v1/predictions/${prediction.id}`)).json();
    }
    show(prediction);
  } catch (error) {
    output.replaceChildren(element("p", { className: "wrong", textContent: error.message }));
  } finally {
    button.disabled = false;
  }
});

document.getElementById("first-token")?.addEventListener("click", async ({ target }) => {
  target.disabled = true;
  try {
    const body = JSON.stringify({ name: _("first steps"), scope: "run" });
    const reply = await api("/admin/tokens", { method: "POST", headers: { "content-type": "application/json" }, body });
    const { token } = await reply.json();
    document.getElementById("first-secret-text").textContent = token;
    document.getElementById("first-secret").hidden = false;
    for (const program of document.querySelectorAll(".start pre.text"))
      program.textContent = program.textContent.replaceAll("<your token>", token);
    toast(_("The token is inserted into the code of step 3. Keep it: it cannot be shown again."));
  } catch (error) {
    target.disabled = false;
    tell(error.message);
  }
});

// Before this script ran, a click would have been lost.
for (const waiting of document.querySelectorAll("#first-run button, #first-token")) waiting.disabled = false;
