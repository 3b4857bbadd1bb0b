// The page of a model, which Gradio builds: puts the run into the URL, keeps typed text, and scrolls to the output.

const draft = `draft:${location.pathname}`; // kept by the browser for this tab, also after a new sign-in
const FIELDS = "[id^='input-'] :is(textarea, input[type='text'], input[type='number'])";

function keyOf(field) {
  return field.closest("[id^='input-']").id;
}

function readDraft() {
  return JSON.parse(sessionStorage.getItem(draft) ?? "{}");
}

document.addEventListener("input", ({ target, isTrusted }) => {
  if (!isTrusted || !(target instanceof Element) || !target.matches(FIELDS) || target.type === "password") return;
  sessionStorage.setItem(draft, JSON.stringify({ ...readDraft(), [keyOf(target)]: target.value }));
});

// Gradio takes over a value that is set here when the field says that it has changed.
function restore() {
  const asked = new URLSearchParams(location.search);
  if (asked.has("run") || asked.has("from")) return;
  const kept = readDraft();
  document.querySelectorAll(FIELDS).forEach((field) => {
    const text = kept[keyOf(field)];
    if (text === undefined || text === field.value) return;
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

// The status of a run links its page: the address of this page gets the id, so that reloading shows the run again.
let run = new URLSearchParams(location.search).get("run");
let pressed = false;

function noteRun() {
  if (!pressed) return;
  const id = document.querySelector(".run-status a[href^='./p/']")?.getAttribute("href").slice("./p/".length);
  if (!id || id === run) return;
  run = id;
  pressed = false;
  const address = new URL(location.href);
  address.search = `?run=${id}`;
  history.replaceState(history.state, "", address);
}

document.addEventListener("click", ({ target }) => {
  if (!(target instanceof Element) || !target.closest("#run")) return;
  pressed = true;
  const result = document.querySelector(".result");
  if (result && result.getBoundingClientRect().top > innerHeight / 2) result.scrollIntoView({ behavior: "smooth" });
});

let ready = false;
new MutationObserver(() => {
  if (!ready && document.querySelector(FIELDS) !== null) {
    ready = true;
    setTimeout(restore); // after Gradio has set the first values
  }
  noteRun();
}).observe(document.body, { childList: true, subtree: true, characterData: true });
