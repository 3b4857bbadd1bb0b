// The list of predictions: cancel, run again or delete the selected ones.

import { confirmed } from "./confirm.js";
import { api } from "./common.js";
import { _ } from "./texts.js";

const list = document.getElementById("list");
const all = document.getElementById("all");
const said = document.getElementById("said");
const buttons = [...document.querySelectorAll("[data-bulk]")];

let busy = false; // while requests for the selected predictions are under way
const ticks = () => [...list.querySelectorAll("input.tick")];
const selected = () => ticks().filter((tick) => tick.checked).map((tick) => tick.value);

function update() {
  const count = selected().length;
  for (const button of buttons) button.disabled = busy || count === 0;
  if (all === null) return;
  all.checked = count > 0 && count === ticks().length;
  all.indeterminate = count > 0 && !all.checked;
}

const acts = {
  cancel: {
    done: (count) => _("Predictions canceled: {count}.", { count }),
    async act(id) {
      await api(`/admin/predictions/${id}/cancel`, { method: "POST" });
    },
  },
  rerun: {
    done: (count) => _("Predictions created: {count}.", { count }),
    async act(id) {
      const record = await (await api(`/admin/predictions/${id}`)).json();
      if (record.data_removed) throw new Error(_("The input of this prediction was deleted."));
      if (record.type === "training") throw new Error(_("Trainings cannot be run again here."));
      if (record.operation) throw new Error(_("Calls of other APIs, such as chats, cannot be run again here."));
      await api("/v1/predictions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ version: record.version, input: record.input }),
      });
    },
  },
  delete: {
    done: (count) => _("Predictions whose data was deleted: {count}.", { count }),
    question: (count) => _("Delete the input, output, logs and files of {count} predictions? The list keeps their other data.", { count }),
    async act(id) {
      await api(`/admin/predictions/${id}`, { method: "DELETE" });
    },
  },
};

// One request at a time: the server has other work, and messages are in the order of the list.
async function run({ act, done, question }) {
  const ids = selected();
  if (question && !(await confirmed(question(ids.length)))) return;
  busy = true;
  for (const tick of ticks()) tick.checked = false;
  update();
  let count = 0;
  const problems = [];
  for (const id of ids) {
    try {
      await act(id);
      count += 1;
    } catch (error) {
      problems.push(`${id}: ${error.message}`);
    }
  }
  busy = false;
  update();
  said.classList.toggle("wrong", problems.length > 0);
  said.textContent = [count > 0 || problems.length === 0 ? done(count) : "", ...problems].filter(Boolean).join(" ");
  const part = document.getElementById("predictions");
  if (part.hasAttribute("hx-get")) window.htmx?.trigger(part, "refresh");
  else location.reload();
}

list.addEventListener("change", update);
all?.addEventListener("change", () => {
  for (const tick of ticks()) tick.checked = all.checked;
  update();
});
for (const button of buttons) {
  button.addEventListener("click", () => run(acts[button.dataset.bulk]));
}
document.addEventListener("htmx:afterSettle", update);
