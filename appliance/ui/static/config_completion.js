// Which keys or values may stand at a position of a config file, by its JSON Schema. Knows block YAML only.

const KEY = /^(\s*(?:- +)*)([\w-]+)\s*:(?:\s+(.*))?$/;

// Returns the lines as { indent: column of the key, dash: column of the dash or -1, key, value }.
function parse(text) {
  return text.split("\n").map((line) => {
    const found = KEY.exec(line);
    if (found === null) return null;
    return { indent: found[1].length, dash: found[1].indexOf("-"), key: found[2], value: (found[3] ?? "").trim() };
  });
}

// Returns the keys that lead to the mapping at `row` and `indent`, and the keys that it has.
function context(lines, row, indent, dash) {
  const path = [];
  const levels = [new Map()];
  let [limit, inItem] = [indent, dash >= 0];
  if (inItem) limit = dash;
  for (let at = row - 1; at >= 0; at--) {
    const line = lines[at];
    if (line === null || line.indent > (inItem ? limit : limit)) continue;
    if (!inItem && line.indent === limit) {
      levels[0].set(line.key, line.value);
      if (line.dash >= 0) [inItem, limit] = [true, line.dash];
    } else if (line.dash < 0 && (inItem ? line.indent <= limit : line.indent < limit)) {
      path.unshift({ key: line.key, item: inItem });
      levels.unshift(new Map([[line.key, line.value]]));
      [inItem, limit] = [false, line.indent];
    } else if (line.dash >= 0 && line.indent < limit) {
      path.unshift({ key: line.key, item: inItem });
      levels.unshift(new Map([[line.key, line.value]]));
      [inItem, limit] = [true, line.dash];
    }
  }
  for (let at = row + 1; at < lines.length; at++) {
    const line = lines[at];
    if (line === null) continue;
    if (line.indent < indent || line.dash >= 0 && line.dash < indent) break;
    if (line.indent === indent) levels.at(-1).set(line.key, line.value);
  }
  return { path, levels };
}

// Returns the schemas that a value may have; of models, the one of the kind that `siblings` names.
function variants(schema, node, siblings = new Map()) {
  if (node === undefined || node === true) return [];
  if (node.$ref) return variants(schema, node.$ref.split("/").slice(1).reduce((inner, key) => inner[key], schema), siblings);
  const kind = node.discriminator && siblings.get(node.discriminator.propertyName)?.replace(/["']/g, "");
  if (kind && node.discriminator.mapping?.[kind]) return variants(schema, { $ref: node.discriminator.mapping[kind] });
  const inner = node.oneOf ?? node.anyOf ?? node.allOf;
  return inner ? inner.flatMap((each) => variants(schema, each, siblings)) : [node];
}

function nodesAt(schema, path, levels) {
  let nodes = [schema];
  path.forEach(({ key, item }, depth) => {
    nodes = nodes.flatMap((node) => [node.properties?.[key] ?? node.additionalProperties])
      .filter((node) => node && typeof node === "object")
      .flatMap((node) => variants(schema, node, levels[depth + 1]))
      .flatMap((node) => (item ? variants(schema, node.items, levels[depth + 1]) : [node]));
  });
  return nodes;
}

const about = (node) => node?.description ?? "";

function values(schema, node) {
  if (node === undefined || typeof node !== "object") return [];
  if (node.discriminator) return [];
  return variants(schema, node).flatMap((each) => each.enum ?? (each.const === undefined ? (each.type === "boolean" ? [true, false] : []) : [each.const]));
}

// Returns { start, words: [{ text, insert, about }] } for the word before `position`; null if there is none.
// Without `asked`, a word must have begun.
export function suggest(schema, text, position, asked) {
  const row = text.slice(0, position).split("\n").length - 1;
  const line = text.slice(text.lastIndexOf("\n", position - 1) + 1, position);
  const lines = parse(text);
  const key = /^(\s*(?:- +)*)([\w-]*)$/.exec(line);
  const value = /^(\s*(?:- +)*)([\w-]+)\s*:\s+([\w.-]*)$/.exec(line);
  const found = key ?? value;
  if (found === null) return null;
  const typed = key ? key[2] : value[3];
  if (typed === "" && !asked) return null;
  const { path, levels } = context(lines, row, found[1].length, found[1].indexOf("-"));
  const nodes = nodesAt(schema, path, levels);
  let words;
  if (key) {
    const known = new Map(nodes.flatMap((node) => Object.entries(node.properties ?? {})));
    words = [...known].filter(([name]) => !levels.at(-1).has(name))
      .map(([name, node]) => ({ text: name, insert: `${name}: `, about: about(node) }));
  } else {
    const all = nodes.flatMap((node) => values(schema, node.properties?.[value[2]]));
    words = [...new Set(all.map(String))].map((word) => ({ text: word, insert: word, about: "" }));
  }
  words = words.filter((word) => word.text.startsWith(typed) && word.text !== typed).slice(0, 40);
  return { start: position - typed.length, words };
}
