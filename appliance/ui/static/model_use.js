// The dialog of a model's page that puts an output into an input of this or of another model.

import { _ } from "./texts.js";
import { api } from "./common.js";
import { fieldsOf, keepForTab, made, shown } from "./inputs.js";

const MOST = 40; // inputs of other models in the dialog

// Whether an input takes a file or text of this kind, such as "image/png" or "text".
function takes({ name, kind, description }, given) {
  if (given === "text") return kind === "text" || kind === "line";
  if (kind !== "file" && kind !== "files") return false;
  const text = `${name} ${description}`;
  const sound = /audio|speech|voice|sound/i.test(text);
  const image = /image|picture|photo|mask/i.test(text);
  const media = given.split("/")[0];
  if (media === "image") return image || !sound;
  if (media === "audio") return sound || !image;
  return true;
}

// Lets the user choose where `value`, the URL of a file or a text, is used. `kind` is its media type, or "text".
export async function chooseUse(value, kind, { model }, form) {
  const dialog = document.getElementById("use");
  const list = dialog.querySelector("ul");
  const item = (text, act) => {
    const button = made("button", { type: "button", textContent: text });
    button.addEventListener("click", () => {
      dialog.close();
      act();
    });
    const row = made("li");
    row.append(button);
    return row;
  };
  const own = form.fields.filter((field) => takes(field, kind));
  list.replaceChildren(
    ...own.map((field) => item(_("{title} (this model)", field), () => form.use(field, value))),
  );
  dialog.showModal();
  const { results } = await (await api("/v1/models")).json();
  const others = results
    .filter((each) => each.latest_version && `${each.owner}/${each.name}` !== model)
    .flatMap((each) => fieldsOf(each.latest_version.openapi_schema)
      .filter((field) => takes(field, kind) && (kind !== "text" || field.required))
      .map((field) => ({ name: `${each.owner}/${each.name}`, field })));
  list.append(...others.slice(0, MOST).map(({ name, field }) => item(
    _("{title} of {model}", { title: field.title, model: name }),
    () => goTo(name, field, value),
  )));
  if (list.childElementCount === 0) list.append(made("li", { textContent: _("No model accepts this output as an input.") }));
}

// Opens the page of another model, which shows what is kept for it.
function goTo(name, field, value) {
  const key = `draft:/${name}`;
  const kept = JSON.parse(sessionStorage.getItem(key) ?? "{}");
  const text = shown(field, field.kind === "files" ? [value] : value);
  keepForTab(key, { ...kept, [field.name]: text });
  location.href = new URL(name, document.baseURI).href;
}
