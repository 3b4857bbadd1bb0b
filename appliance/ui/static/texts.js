// Texts of scripts in the language of the page.

const element = document.getElementById("texts"); // a JSON object: English text -> text in the page's language
const texts = element === null ? {} : JSON.parse(element.textContent);

// Returns `text` in the language of the page, with "{name}" replaced by `values.name`.
export function _(text, values = {}) {
  const found = texts[text] ?? text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
