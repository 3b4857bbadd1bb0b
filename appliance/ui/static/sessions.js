// Revokes sessions, without a reload of the page.

import { confirmed } from "./confirm.js";
import { api, toast } from "./common.js";
import { _ } from "./texts.js";

document.getElementById("session-list").addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-revoke]");
  if (button === null) return;
  const { revoke, account } = button.dataset;
  if (!(await confirmed(_("Revoke this session of {account}? The browser must sign in again.", { account })))) return;
  try {
    await api(`/admin/sessions/${revoke}`, { method: "DELETE" });
    toast(_("The session of {account} is revoked.", { account }));
    htmx.trigger("#session-list", "refresh");
  } catch (error) {
    toast(error.message, { wrong: true });
  }
});
