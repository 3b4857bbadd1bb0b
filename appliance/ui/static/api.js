// The page about the API: search, and links to one operation.
import { _ } from "./texts.js";
import "./tabs.js";

const search = document.getElementById("search");
const shown = document.getElementById("shown");
const operations = [...document.querySelectorAll(".operations details")];
const all = shown.textContent;

function narrow() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const each of operations) {
    each.hidden = !words.every((word) => each.dataset.words.includes(word));
    count += each.hidden ? 0 : 1;
  }
  for (const group of document.querySelectorAll(".operations"))
    group.hidden = group.querySelector("details:not([hidden])") === null;
  if (words.length === 0) shown.textContent = all;
  else shown.textContent = count ? _("Operations found: {count}", { count }) : _("No operation has these words.");
}

// An address with "#predictions.create" opens that operation, and an opened operation puts itself into the address.
function open() {
  const chosen = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (chosen?.localName !== "details") return;
  chosen.open = true;
  chosen.scrollIntoView();
}

search.addEventListener("input", narrow);
for (const each of operations)
  each.querySelector("summary").addEventListener("click", () => {
    if (!each.open) history.replaceState(null, "", `${location.pathname}#${each.id}`);
  });
addEventListener("hashchange", open);
narrow();
open();
