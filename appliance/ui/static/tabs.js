// Tabs: each [role=tablist] shows the panel of the chosen tab. Arrow keys move, in the direction of the language.
for (const list of document.querySelectorAll(".tabs[role=tablist]")) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step === undefined) return;
      const forward = document.documentElement.dir === "rtl" ? -step : step;
      const next = tabs[(tabs.indexOf(tab) + forward + tabs.length) % tabs.length];
      select(next);
      next.focus();
    });
  }
}
