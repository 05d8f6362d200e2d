/** HTTP to the server that this page came from, and to no other. */

const ROOT = new URL("../../", import.meta.url);
const KEY = "draftline.key"; // of sessionStorage: gone with the tab

/** An answer that is no success, or none at all; `status` is 0 then. */
export class ServerError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the address of a path of the server, for people to paste. */
export function address(path) {
  return new URL(path, ROOT).href;
}

/** Tell whether this tab holds a key. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Keep a key for this tab; null forgets it. */
export function setKey(key) {
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

async function send(method, path, body, signal) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(new URL(path, ROOT), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer.");
  }
  if (!reply.ok) throw await describeFailure(reply);
  return reply;
}

async function describeFailure(reply) {
  if (reply.status === 401) dispatchEvent(new Event("draftline-needs-key"));
  try {
    const { error } = await reply.json();
    return new ServerError(reply.status, error.message, error.code);
  } catch {
    return new ServerError(reply.status, `The server answered ${reply.status}.`);
  }
}

/** GET a path's JSON. */
export async function get(path, signal) {
  return (await send("GET", path, undefined, signal)).json();
}

/** GET a path's text. */
export async function getText(path, signal) {
  return (await send("GET", path, undefined, signal)).text();
}

/** POST a body and return the reply's JSON. */
export async function post(path, body, signal) {
  return (await send("POST", path, body, signal)).json();
}

/** DELETE a path. */
export async function remove(path) {
  return (await send("DELETE", path)).json();
}

/** POST a body with `stream: true` and yield the JSON of each event; leaving the loop ends the request. */
export async function* stream(path, body, signal) {
  const reply = await send(
    "POST",
    path,
    { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  );
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ServerError(0, "The connection broke before the answer's end.");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event
          .split("\n")
          .find((line) => line.startsWith("data: "))
          ?.slice(6);
        if (data === "[DONE]") return;
        if (data === undefined) continue;
        const json = JSON.parse(data);
        if (json.error) throw new ServerError(reply.status, json.error.message, json.error.code);
        yield json;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
