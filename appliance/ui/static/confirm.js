// Asks before something is deleted, with the page's <dialog id="confirm">.

const dialog = document.getElementById("confirm");

// Returns whether the reader agrees.
export function confirmed(question) {
  document.getElementById("confirm-question").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
