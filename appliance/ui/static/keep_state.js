// Keeps what the reader has done in a part of a page when htmx refreshes it: folds, ticks, selected text, focus.

const kept = { folds: new Map(), ticks: new Set(), scrolled: new Map(), summary: null };

function isRefresh({ target, requestConfig }) {
  return requestConfig?.elt === target;
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const { target } = event.detail;
  if (!event.detail.shouldSwap || !isRefresh(event.detail)) return;
  const selection = getSelection();
  if (!selection.isCollapsed && target.contains(selection.anchorNode)) {
    event.detail.shouldSwap = false; // the next refresh comes soon
    return;
  }
  kept.folds = new Map([...target.querySelectorAll("details[id]")].map((fold) => [fold.id, fold.open]));
  kept.ticks = new Set([...target.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value));
  kept.scrolled = new Map(
    [...target.querySelectorAll("[id][tabindex]")].map((element) => [element.id, element.scrollLeft]),
  );
  const active = document.activeElement;
  kept.summary = active?.tagName === "SUMMARY" && target.contains(active) ? active.parentElement.id : null;
});

document.addEventListener("htmx:afterSwap", () => {
  for (const [id, open] of kept.folds) {
    const fold = document.getElementById(id);
    if (fold !== null && fold.open !== open) fold.open = open;
  }
  for (const value of kept.ticks) {
    const box = document.querySelector(`input[type=checkbox][value="${CSS.escape(value)}"]`);
    if (box !== null) box.checked = true;
  }
  for (const [id, left] of kept.scrolled) {
    const element = document.getElementById(id);
    if (element !== null) element.scrollLeft = left;
  }
  if (kept.summary) document.getElementById(kept.summary)?.querySelector("summary")?.focus();
  kept.folds.clear();
  kept.ticks.clear();
  kept.scrolled.clear();
  kept.summary = null;
});
