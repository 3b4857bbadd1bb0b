// Form controls for the inputs of a model, built from its OpenAPI document. They are as `fields.py` makes them.
//
//   const inputs = new Inputs(element, fieldsOf(document), { temperature: 0.2 }, { prefix: "left-" });
//   await inputs.uploaded();
//   inputs.values(); // without values that are equal to their default

import { _ } from "./texts.js";
import { api } from "./common.js";

const LONG_TEXTS = ["prompt", "text", "document", "lyrics", "message", "context"];

// Returns the fields of a version in their order: name, title, kind, description, default, and what the kind needs.
export function fieldsOf(document) {
  const schemas = document.components.schemas;
  const { properties = {}, required = [] } = schemas.Input;
  return Object.entries(properties)
    .sort(([, one], [, other]) => (one["x-order"] ?? 1e6) - (other["x-order"] ?? 1e6))
    .map(([name, schema]) => fieldOf(name, resolved(schema, schemas), required.includes(name)));
}

function fieldOf(name, schema, required) {
  return {
    name,
    title: schema.title || name.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase()),
    kind: kindOf(name, schema),
    description: schema.description ?? "",
    default: schema.default ?? null,
    required,
    integer: schema.type === "integer",
    minimum: schema.minimum ?? null,
    maximum: schema.maximum ?? null,
    choices: schema.enum ?? [],
    items: schema.items?.type ?? "string", // type of the items of a list
    text: (schema.anyOf ?? []).some((part) => part.type === "string"), // whether a value that is not JSON is text
  };
}

// Merges references into the schema of an input; with several types, the result has no `type`.
function resolved(schema, schemas) {
  const named = (part) => schemas[(part.$ref ?? "").split("/").pop()] ?? {};
  for (const part of schema.allOf ?? []) schema = { ...(part.$ref ? named(part) : part), ...schema };
  const parts = (schema.anyOf ?? []).filter((part) => part.type !== "null");
  if (parts.length === 1) {
    const { anyOf: _several, ...rest } = schema;
    return { ...resolved(parts[0], schemas), ...rest };
  }
  return schema.$ref ? { ...named(schema), ...schema } : schema;
}

function kindOf(name, schema) {
  if (schema.enum) return "choice";
  switch (schema.type) {
    case "boolean": return "switch";
    case "integer": case "number": return "number";
    case "array":
      if (schema.items?.format === "uri") return "files";
      return ["string", "integer", "number"].includes(schema.items?.type) ? "list" : "json";
    case "string":
      if (schema.format === "uri") return "file";
      if (schema.format === "password" || schema["x-cog-secret"]) return "secret";
      return LONG_TEXTS.some((word) => name.includes(word)) ? "text" : "line";
  }
  return "json";
}

// The value of a control's text for the model; undefined for an empty control. Errors have a text for people.
export function parsed(field, text) {
  const clears = field.default && ["text", "line"].includes(field.kind); // an empty text, instead of the default
  if (text === "" && !clears) return undefined;
  switch (field.kind) {
    case "choice": return field.choices.find((choice) => String(choice) === text);
    case "number": return number(field, text);
    case "list": {
      const lines = linesOf(text);
      return lines.length === 0 ? undefined : lines.map((line) => (field.items === "string" ? line : json(field, line)));
    }
    case "files": return linesOf(text).length === 0 ? undefined : linesOf(text).map((line) => line.trim());
    case "file": return text.trim() || undefined;
    case "json": return json(field, text);
  }
  return text;
}

// The text of a control for a value, the opposite of `parsed`.
export function shown(field, value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value) && ["list", "files"].includes(field.kind)) {
    return value.map((item) => (typeof item === "string" ? item : JSON.stringify(item))).join("\n");
  }
  if (field.kind === "json" && !(field.text && typeof value === "string")) return JSON.stringify(value, null, 2);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function number(field, text) {
  const found = Number(text);
  if (!Number.isFinite(found)) throw new Error(_("{title} must be a number.", field));
  if (field.integer && !Number.isInteger(found)) throw new Error(_("{title} must be a whole number.", field));
  if (field.minimum !== null && found < field.minimum) {
    throw new Error(_("{title} must be at least {minimum}.", field));
  }
  if (field.maximum !== null && found > field.maximum) {
    throw new Error(_("{title} must be at most {maximum}.", field));
  }
  return found;
}

function json(field, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (field.text) return text;
    throw new Error(_("{title} must be JSON: {problem}", { title: field.title, problem: error.message }));
  }
}

function linesOf(text) {
  return text.split(/\r?\n/).filter((line) => line.trim() !== "");
}

// The values of inputs, without those that are equal to their default. `read` returns the value of a field.
export function valuesOf(fields, read) {
  const found = {};
  for (const field of fields) {
    const value = read(field);
    if (value === undefined || (!field.required && same(value, field.default))) continue;
    if (field.kind === "switch" && value === false && field.default === null && !field.required) continue;
    found[field.name] = value;
  }
  return found;
}

export class Inputs {
  #controls = new Map(); // name -> the control whose value is read
  #uploads = new Set();

  // Replaces the content of `element` by a control for each field. `prefix` begins the ids of the controls.
  constructor(element, fields, values = {}, { prefix = "input-", changed = () => {} } = {}) {
    this.fields = fields;
    this.prefix = prefix;
    this.changed = changed;
    element.replaceChildren(...fields.map((field) => this.#row(field, values[field.name] ?? field.default)));
  }

  // The values of the inputs, without those that are equal to their default. Throws an error if one is not valid.
  values() {
    return valuesOf(this.fields, (field) => this.#read(field));
  }

  // Returns the first control that is not valid, with the reason as its validation message; null if all are valid.
  invalid() {
    for (const field of this.fields) {
      const control = this.#controls.get(field.name);
      control.setCustomValidity("");
      try {
        const missing = this.#read(field) === undefined;
        if (missing && field.required) throw new Error(_("{title} is required.", field));
      } catch (error) {
        control.setCustomValidity(error.message);
        return control;
      }
    }
    return null;
  }

  // Waits for the files that are still being uploaded.
  async uploaded() {
    await Promise.all(this.#uploads);
  }

  #read(field) {
    const control = this.#controls.get(field.name);
    if (field.kind === "switch") return control.checked;
    if (control.validity.badInput) throw new Error(_("{title} must be a number.", field));
    return parsed(field, control.value);
  }

  #row(field, value) {
    const control = this.#control(field, value);
    control.id = this.prefix + field.name;
    control.addEventListener("input", () => {
      control.setCustomValidity("");
      this.changed();
    });
    this.#controls.set(field.name, control);
    const label = made("label", { htmlFor: control.id, textContent: field.title + (field.required ? " *" : "") });
    const row = made("div", { className: `input input-${field.kind}` });
    if (field.kind === "switch") row.append(control, label);
    else row.append(label, control);
    if (field.kind === "file" || field.kind === "files") label.after(this.#upload(field, control));
    const bounds = boundsOf(field);
    const description = bounds && field.description
      ? `${field.description.replace(/[^.!?]$/, "$&.")} ${bounds}`
      : field.description || bounds;
    if (description) {
      row.append(made("small", { id: `${control.id}-about`, textContent: description }));
      control.setAttribute("aria-describedby", `${control.id}-about`);
    }
    return row;
  }

  #control(field, value) {
    const text = shown(field, value);
    switch (field.kind) {
      case "choice": {
        const empty = field.required || field.default !== null ? [] : [""];
        const select = made("select");
        select.append(...[...empty, ...field.choices].map((choice) => new Option(String(choice), String(choice))));
        select.value = text;
        return select;
      }
      case "switch": return made("input", { type: "checkbox", checked: Boolean(value) });
      case "number": return made("input", { type: "number", step: field.integer ? "1" : "any", value: text });
      case "secret": return made("input", { type: "password", autocomplete: "off", value: text });
      case "line": return made("input", { type: "text", value: text });
      case "file": return made("input", { type: "text", placeholder: _("or a URL: https://…"), value: text });
    }
    const hint = { list: _("one per line"), files: _("or URLs, one per line"), json: _("JSON") }[field.kind] ?? "";
    return made("textarea", { rows: field.kind === "files" ? 2 : 3, placeholder: hint, value: text });
  }

  // A button that uploads files of this machine and puts their URLs into `control`.
  #upload(field, control) {
    const chooser = made("input", { type: "file", multiple: field.kind === "files" });
    const said = made("p", { className: "wrong", hidden: true });
    said.setAttribute("role", "alert");
    chooser.setAttribute("aria-label", _("Upload a file for {title}", field));
    chooser.addEventListener("change", () => {
      const sending = this.#send([...chooser.files], field, control, said).finally(() => this.#uploads.delete(sending));
      this.#uploads.add(sending);
    });
    const row = made("div");
    row.append(chooser, said);
    return row;
  }

  async #send(files, field, control, said) {
    said.hidden = true;
    try {
      const urls = await Promise.all(files.map(upload));
      const kept = field.kind === "files" ? linesOf(control.value) : [];
      control.value = [...kept, ...urls].join("\n");
      control.dispatchEvent(new Event("input", { bubbles: true }));
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
  }
}

// Uploads a file to the API; returns its URL.
export async function upload(file) {
  const body = new FormData();
  body.append("content", file, file.name);
  const reply = await api("/v1/files", { method: "POST", body });
  return (await reply.json()).urls.get;
}

function boundsOf(field) {
  const told = (bound) => (Math.abs(bound) > 1e12 ? null : bound); // larger ones, of seeds, say nothing
  const [minimum, maximum] = [told(field.minimum), told(field.maximum)];
  if (field.kind !== "number" || (minimum === null && maximum === null)) return "";
  if (maximum === null) return _("At least {minimum}.", { minimum });
  if (minimum === null) return _("At most {maximum}.", { maximum });
  return _("From {minimum} to {maximum}.", { minimum, maximum });
}

export function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

// Keeps a value until the tab is closed or its user signs out. The browser may have no space left for it.
export function keepForTab(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    sessionStorage.removeItem(key); // what is kept is older
  }
}

export function made(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}
