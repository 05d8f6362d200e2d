/** From settings and messages to a body of the API, and from there to what people paste elsewhere. */
import { address } from "./api.js";

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"];

/** What the page wants to know of every answer, beyond its text. */
const OBSERVED = { return_token_ids: true, return_provenance: true, cache_explain: true };

/** Raised where a field of the settings cannot be read. */
export class SettingsError extends Error {}

function parseJson(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingsError(`${name}: ${error.message}`);
  }
}

/** Return the fields that both endpoints have; what is empty is left to the model. */
export function sharedFields(settings) {
  const fields = {};
  for (const name of NUMBERS) if (settings[name] !== "") fields[name] = settings[name];
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  if (stop.length) fields.stop = stop;
  if (settings.speculation) fields.speculation = { mode: settings.speculation };
  if (settings.schema.trim()) {
    const schema = parseJson(settings.schema, "JSON schema");
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  return fields;
}

/** Return the body of a chat completion; `messages` are the page's. */
export function chatBody(messages, settings) {
  const body = { messages: messages.map(toApi), ...sharedFields(settings) };
  if (settings.system) body.messages.unshift({ role: "system", content: settings.system });
  if (settings.tools.trim()) body.tools = parseJson(settings.tools, "Tools");
  return body;
}

function toApi(message) {
  if (message.role === "user") return { role: "user", content: message.content };
  const answer = message.variants[message.shown];
  const calls = answer.toolCalls.length ? { tool_calls: answer.toolCalls } : {};
  return { role: "assistant", content: answer.text, ...calls };
}

/** Return the body that is sent: `body` and what the page wants to know. */
export function observed(body) {
  return { ...body, ...OBSERVED };
}

/** Return a body with the seed and everything else that an answer was made with. */
export function repeatable(answer) {
  return { ...answer.body, seed: answer.seed ?? answer.body.seed };
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Return a command that asks for the same. */
export function asCurl(path, body, needsKey) {
  const key = needsKey ? ' \\\n  -H "Authorization: Bearer $DRAFTLINE_API_KEY"' : "";
  return (
    `curl -N ${shellQuoted(address(path))} \\\n  -H 'Content-Type: application/json'${key} \\\n` +
    `  -d ${shellQuoted(JSON.stringify({ ...body, stream: true }, null, 2))}`
  );
}

/** Write a JSON value as Python. */
export function pythonLiteral(value, indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => inner + pythonLiteral(item, inner))
    : Object.entries(value).map(
        ([key, item]) => `${inner}${JSON.stringify(key)}: ${pythonLiteral(item, inner)}`,
      );
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length ? `${open}\n${items.join(",\n")},\n${indent}${close}` : open + close;
}

/** Return a script with our client that asks for the same. */
export function asPython(path, body) {
  const isChat = path === "v1/chat/completions";
  const fields = Object.entries(body).map(
    ([name, value]) => `        ${name}=${pythonLiteral(value, "        ")},`,
  );
  const text = isChat ? "choices[0].message.content" : "choices[0].text";
  return [
    "from draftline_client import Client",
    "",
    `with Client(base_url=${JSON.stringify(address("").replace(/\/$/, ""))}) as client:  # the key: DRAFTLINE_API_KEY`,
    `    answer = client.${isChat ? "chat" : "completions"}.create(`,
    ...fields,
    "    )",
    `    print(answer.${text})`,
    "",
  ].join("\n");
}
