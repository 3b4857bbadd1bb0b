// Tabs: elements with the role "tab" in a "tablist", each with the id of its panel in "aria-controls". A page hears of
// a chosen tab by the event "tab-chosen". Arrow keys move in the direction of the language. A tab that is a link also
// works before this script has run: it opens the page with that tab.

export function select(tab) {
  for (const each of tab.closest("[role=tablist]").querySelectorAll("[role=tab]")) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  tab.dispatchEvent(new Event("tab-chosen", { bubbles: true }));
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest?.("[role=tab]");
  if (!tab || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  select(tab);
});
document.addEventListener("keydown", ({ key, target }) => {
  const list = target.closest?.("[role=tab]")?.closest("[role=tablist]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (!list || step === undefined) return;
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const forward = document.documentElement.dir === "rtl" ? -step : step;
  const next = tabs[(tabs.indexOf(target) + forward + tabs.length) % tabs.length];
  select(next);
  next.focus();
});
