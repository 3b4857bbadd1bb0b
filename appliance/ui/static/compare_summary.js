// What compare.js measures of predictions: numbers, the table that sums them up, and the same as Markdown.

import { _ } from "./texts.js";

const language = document.documentElement.lang || undefined;

// Numbers of a prediction: metrics by name, and the cost. `best` says whether less or more is better; `text`: only of
// models that write text.
export const MEASURES = [
  { title: _("First token"), name: "time_to_first_token", text: true, best: "least", show: duration },
  { title: _("Tokens/s"), name: "tokens_per_second", text: true, best: "most", show: (speed) => speed.toFixed(1) },
  { title: _("Tokens"), name: "output_token_count", text: true, show: (count) => count.toLocaleString(language) },
  { title: _("Run time"), name: "predict_time", best: "least", show: duration },
  { title: _("Total time"), name: "total_time", best: "least", tableOnly: true, show: duration },
  { title: _("Cold start"), name: "cold_start", show: duration },
  { title: _("Cost"), name: "cost", priced: true, best: "least", show: amount },
].map((measure) => ({ ...measure, text_of: (record) => textOfMeasure(measure, record) }));

function valueOf({ name, priced }, record) {
  return priced ? record[name] : record.metrics?.[name];
}

function textOfMeasure(measure, record) {
  const found = valueOf(measure, record);
  return found === undefined || found === null ? "" : measure.show(found);
}

export function duration(seconds) {
  if (seconds < 1) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return _("{minutes} min {seconds} s", { minutes: Math.floor(seconds / 60), seconds: Math.floor(seconds % 60) });
}

function amount(cost) {
  const least = 1e-6; // less is not worth its digits
  const shown = cost > 0 && cost < least ? least : cost;
  return (shown === cost ? "" : "< ") + shown.toLocaleString(language, { maximumSignificantDigits: 3 });
}

export function titleOf(measure, currency) {
  return measure.priced ? `${measure.title} (${currency})` : measure.title;
}

export function textOf(output) {
  if (output === null || output === undefined) return "";
  if (Array.isArray(output) && output.every((part) => typeof part === "string")) return output.join("");
  return typeof output === "string" ? output : JSON.stringify(output, null, 2);
}

const KINDS = {
  image: /\.(png|jpe?g|webp|gif|avif|bmp|svg)$/i,
  audio: /\.(wav|mp3|ogg|oga|flac|m4a|opus)$/i,
  video: /\.(mp4|webm|mov|mkv)$/i,
};

// The files of an output: their kind, name and URL. Files of other servers have no URL: loading them would tell that
// server who opens the page.
export function filesOf(output) {
  const isUrl = (each) => typeof each === "string" && /^(https?|data):/.test(each);
  const urls = (Array.isArray(output) ? output : [output]).filter(isUrl);
  return urls.map((url, index) => {
    const inline = /^data:(image|audio|video)\/[a-z0-9.+-]+[;,]/i.exec(url);
    if (inline) return { kind: inline[1].toLowerCase(), name: _("file {number}", { number: index + 1 }), url };
    if (url.startsWith("data:")) return { kind: "", name: _("file {number}", { number: index + 1 }), url };
    const path = new URL(url).pathname;
    const at = path.lastIndexOf("/outputs/");
    if (at < 0) return { kind: "", name: url, url: null };
    const kind = Object.keys(KINDS).find((each) => KINDS[each].test(path)) ?? "";
    const name = decodeURIComponent(path.slice(path.lastIndexOf("/") + 1));
    return { kind, name, url: new URL(path.slice(at + 1), document.baseURI).href };
  });
}

// The rows of the table: each has the column, and the text of each measure with whether it is the best.
export function summaryOf(columns, currency) {
  const records = columns.map((column) => (column.running ? null : column.record));
  const measured = (measure) => records.some((record) => record && measure.text_of(record));
  const measures = MEASURES.filter((each) => (!each.priced || currency !== null) && measured(each));
  const best = measures.map((measure) => bestOf(measure, records));
  const rows = columns.map((column, row) => ({
    column,
    settings: settingsOf(column),
    status: column.record?.status ?? (column.failure ? "failed" : _("not run yet")),
    cells: measures.map((measure, index) => ({
      text: records[row] ? measure.text_of(records[row]) : "",
      best: best[index] !== null && records[row]?.status === "succeeded" && valueOf(measure, records[row]) === best[index],
    })),
  }));
  return { titles: [_("Model"), _("Settings"), _("State"), ...measures.map((each) => titleOf(each, currency))], rows };
}

// The best value, or null if there are not two different ones.
function bestOf(measure, records) {
  const { best } = measure;
  const succeeded = records.filter((record) => record?.status === "succeeded");
  const values = succeeded.map((record) => valueOf(measure, record)).filter((each) => typeof each === "number");
  if (!best || new Set(values).size < 2) return null;
  return best === "least" ? Math.min(...values) : Math.max(...values);
}

// The inputs of the prediction but the prompt, as they were when it was created.
function settingsOf(column) {
  const prompt = column.page.models.get(column.model)?.prompt;
  const given = Object.entries(column.record?.input ?? {}).filter(([name]) => name !== prompt);
  const text = (value) => shortened(typeof value === "string" ? value : JSON.stringify(value));
  return given.map(([name, value]) => `${name}: ${text(value)}`).join(", ");
}

function shortened(text) {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

export function showSummary(table, { titles, rows }) {
  const head = document.createElement("tr");
  const heading = (textContent) => Object.assign(document.createElement("th"), { scope: "col", textContent });
  head.append(...titles.map(heading));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(
    ...rows.map(({ column, settings, status, cells }) => {
      const texts = [{ text: `${column.number}. ${column.model}` }, { text: settings }, { text: status }, ...cells];
      const row = document.createElement("tr");
      row.append(
        ...texts.map(({ text, best }, index) => {
          const cell = Object.assign(document.createElement("td"), { textContent: text });
          cell.dataset.label = titles[index];
          if (best) {
            cell.className = "best";
            cell.title = _("Best");
          }
          return cell;
        }),
      );
      return row;
    }),
  );
}

export function markdownOf(prompt, { titles, rows }) {
  const line = (cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|").replace(/\s+/g, " ")).join(" | ")} |`;
  const cell = ({ text, best }) => (best ? `**${text}**` : text);
  const table = [
    line(titles),
    line(titles.map(() => "---")),
    ...rows.map(({ column, settings, status, cells }) =>
      line([`${column.number}. ${column.model}`, settings, status, ...cells.map(cell)])),
  ];
  const outputs = rows.map(({ column }) => {
    const files = column.kind === "text" ? [] : filesOf(column.record?.output);
    const made = files.length > 0 ? files.map(fileAsMarkdown).join("\n\n") : quoted(textOf(column.record?.output));
    const failed = column.failure ? `*${_("Error")}: ${column.failure.replace(/\s+/g, " ")}*\n\n` : "";
    return `## ${column.number}. ${column.model}\n\n${failed}${made}`.trim();
  });
  return [quoted(prompt), table.join("\n"), ...outputs].join("\n\n") + "\n";
}

function fileAsMarkdown({ kind, name, url }) {
  return `${kind === "image" ? "!" : ""}[${name.replace(/[[\]]/g, "\\$&")}](${url ?? name})`;
}

function quoted(text) {
  return text.split(/\r?\n/).map((line) => `> ${line}`.trimEnd()).join("\n");
}
