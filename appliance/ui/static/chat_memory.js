// What the browser itself remembers of an account's chats: drafts, changes that are not stored yet, the model.

let prefix = "";

// Must be called first. Each account has its own entries, because several people may use one browser.
export function rememberFor(account) {
  prefix = `chat ${new URL(document.baseURI).pathname} ${account} `;
}

export function recall(key) {
  try {
    return JSON.parse(localStorage.getItem(prefix + key));
  } catch {
    return null; // the browser permits no storage, or another program wrote the entry
  }
}

// Returns whether the value was stored: the browser may permit no storage, or have no space left.
export function remember(key, value) {
  try {
    localStorage.setItem(prefix + key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// Remembers the revision of a conversation that this tab has stored, until the tab is closed.
export function rememberRevision(id, revision) {
  try {
    sessionStorage.setItem(`${prefix}revision ${id}`, revision);
  } catch {
    // without storage, a page that is reloaded while a change is being stored may show the conversation before it
  }
}

export function recallRevision(id) {
  try {
    return Number(sessionStorage.getItem(`${prefix}revision ${id}`));
  } catch {
    return 0;
  }
}

// Forgets all entries about conversations that the account no longer has: they were deleted in another browser.
export function forgetDeleted(ids) {
  const kept = new Set([...ids, "new"]);
  try {
    for (const key of Object.keys(localStorage)) {
      const [, kind, id] = /^(unsaved|draft) (.*)$/.exec(key.startsWith(prefix) ? key.slice(prefix.length) : "") ?? [];
      if (kind !== undefined && !kept.has(id)) localStorage.removeItem(key);
    }
  } catch {
    // the browser permits no storage
  }
}

export function forget(key) {
  try {
    localStorage.removeItem(prefix + key);
  } catch {
    // nothing was stored
  }
}
