// Tokens and the webhook key, without a reload of the page.

import { api, toast } from "./common.js";
import { _ } from "./texts.js";

const dialog = document.getElementById("confirm");
const send = (method, body) => ({ method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const refresh = () => htmx.trigger("#token-list", "refresh");

function reveal(box, place, secret) {
  document.getElementById(place).textContent = secret;
  document.getElementById(box).hidden = false;
}

// Resolves to whether the user agrees.
function agreed(title, text, action) {
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  document.getElementById("confirm-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

const tokenForm = document.getElementById("create-token");
tokenForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, scope, owner, description, expires_at, networks, models } = tokenForm.elements;
  const problem = (field, text) => {
    document.getElementById(`${field.name}-problem`).textContent = text;
    field.toggleAttribute("aria-invalid", text !== "");
    if (!text) return;
    field.closest("details")?.setAttribute("open", "");
    field.focus();
  };
  for (const field of [name, owner, expires_at, networks, models]) problem(field, "");
  if (!name.value.trim()) return problem(name, _("Give the token a name."));
  try {
    const body = { name: name.value.trim(), scope: scope.value };
    if (owner.value.trim()) body.owner = owner.value.trim();
    if (description.value.trim()) body.description = description.value.trim();
    if (expires_at.value) body.expires_at = new Date(expires_at.value).toISOString();
    for (const field of [networks, models]) {
      const values = field.value.split(/[\s,]+/).filter(Boolean);
      if (values.length) body[field.name] = values;
    }
    const { token } = await (await api("/admin/tokens", send("POST", body))).json();
    reveal("new-token", "secret", token);
    for (const field of [name, description, expires_at, networks, models]) field.value = "";
    refresh();
  } catch (error) {
    const wrong = [owner, expires_at, networks, models].find((field) => field.value.trim() && error.message.includes(field.name));
    problem(wrong ?? name, error.message);
  }
});

document.getElementById("token-list").addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-revoke]");
  if (button === null) return;
  const { revoke, name } = button.dataset;
  const text = _("Programs that use it are refused from then on. This cannot be undone.");
  if (!(await agreed(_("Revoke the token {name}?", { name }), text, _("Revoke")))) return;
  try {
    await api(`/admin/tokens/${revoke}`, { method: "DELETE" });
    toast(_("The token {name} is revoked.", { name }));
    refresh();
  } catch (error) {
    toast(error.message, { wrong: true });
  }
});

const keyForm = document.getElementById("replace-key");
keyForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const hours = Number(keyForm.elements.hours.value);
  const text = _("Give the new key to all receivers within {hours} hours: after that they cannot check signatures.", { hours });
  if (!(await agreed(_("Replace the webhook key?"), text, _("Replace the webhook key")))) return;
  try {
    const { key } = await (await api("/admin/webhooks/secret", send("POST", { keep: 3600 * hours }))).json();
    reveal("new-key", "key", key);
  } catch (error) {
    toast(error.message, { wrong: true });
  }
});
