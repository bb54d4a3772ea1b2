/** The HTTP API (openapi.json), as the page calls it. */

export class ApiError extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

const listeners = new Set();

/** Called when the API wants a token. */
export function onLogInNeeded(listener) {
  listeners.add(listener);
}

const TRIES = 4;
const AGAIN_AFTER_MS = 200;

/**
 * The answer's JSON (null for none), with `next`, the address of a list's rest. Throws ApiError.
 *
 * What changes nothing when it is done twice is asked again if it was lost on its way (index.html has why it may be): all
 * but POST, and a job with an id of its own.
 */
export async function call(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const response = await ask(path, options, method !== "POST" || body?.id ? TRIES : 1);
  if (response.status === 401 && path !== "session") for (const listener of listeners) listener();
  const text = await response.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    data = { error: text.slice(0, 300) };
  }
  if (!response.ok) throw new ApiError(data?.error ?? `HTTP ${response.status}`, response.status);
  const next = /<([^>]*)>; rel="next"/.exec(response.headers.get("Link") ?? "");
  return { data, next: next && next[1].replace(/^\//, "") };
}

async function ask(path, options, tries) {
  try {
    return await fetch(path, options);
  } catch {
    if (tries === 1) throw new ApiError("The server does not answer.", 0);
  }
  await new Promise((done) => setTimeout(done, AGAIN_AFTER_MS));
  return ask(path, options, tries - 1);
}

export const get = async (path) => (await call("GET", path)).data;
/** An id for a job, as the server makes them. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const jobPath = (id) => `jobs/${encodeURIComponent(id)}`;

/**
 * Server-sent events until `close()`, each once; a connection that breaks is taken up where it was. `handlers` by type;
 * `onLost` when the server cannot be reached, `onOpen` when it is (again).
 *
 * A page that nobody sees has none: a browser allows six connections to a server, over all its tabs.
 */
export function events(path, handlers, { onOpen = () => {}, onLost = () => {} } = {}) {
  let source = null;
  let last = null; // the place of the last event, where events have one
  const open = () => {
    source = new EventSource(last ? `${path}?after=${last}` : path);
    for (const [type, handle] of Object.entries(handlers)) {
      source.addEventListener(type, (message) => {
        last = message.lastEventId || null;
        handle(JSON.parse(message.data));
      });
    }
    source.onopen = onOpen;
    source.onerror = onLost;
  };
  const close = () => {
    source?.close();
    source = null;
  };
  const seen = () => (document.hidden ? close() : (source ?? open()));
  document.addEventListener("visibilitychange", seen);
  seen();
  return {
    close() {
      document.removeEventListener("visibilitychange", seen);
      close();
    },
  };
}
