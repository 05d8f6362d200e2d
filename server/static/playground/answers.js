/** Answers: made by streaming one, scored token by token, asked for again, gone on from at any token. */
import { post, stream } from "./api.js";
import { observed, repeatable } from "./request.js";

export const CHAT = "v1/chat/completions";
export const COMPLETIONS = "v1/completions";

/** An answer as the page keeps it; plain data, so that it can be stored. */
function emptyAnswer(path, body) {
  return {
    path,
    body,
    text: "",
    reasoning: "",
    toolCalls: [],
    promptTokenIds: [],
    tokenIds: [],
    provenance: [],
    seed: body.seed ?? null,
    finishReason: null,
    usage: null,
    warnings: [],
    error: null,
    seconds: null,
    firstSeconds: null,
    maxTokens: body.max_tokens ?? null, // a branch counts what it was given, too
    branchedAt: null, // number of tokens that were given, where it goes on from another answer
    givenText: "",
    checked: null, // what repeating it showed
  };
}

/**
 * Ask and yield the answer as it grows; the last one has a finish reason or an error.
 *
 * Aborting `signal` ends it with the finish reason `stopped`, and the server's work with it.
 */
export async function* ask(path, body, signal) {
  const started = performance.now();
  let answer = emptyAnswer(path, body);
  try {
    for await (const chunk of stream(path, observed(body), signal)) {
      answer = withChunk(answer, chunk);
      const seconds = (performance.now() - started) / 1000;
      if (answer.tokenIds.length && answer.firstSeconds === null) answer.firstSeconds = seconds;
      answer.seconds = seconds;
      yield answer;
    }
  } catch (error) {
    const isStopped = error.name === "AbortError";
    yield isStopped
      ? { ...answer, finishReason: "stopped" }
      : { ...answer, finishReason: "error", error: error.message };
  }
}

function withChunk(answer, chunk) {
  const next = { ...answer };
  const [choice] = chunk.choices;
  if (chunk.usage) next.usage = chunk.usage;
  if (chunk.warnings) next.warnings = chunk.warnings;
  if (!choice) return next;
  const delta = choice.delta ?? { content: choice.text };
  next.text += delta.content ?? "";
  next.reasoning += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) next.toolCalls = withCallPart(next.toolCalls, part);
  next.promptTokenIds = choice.prompt_token_ids ?? chunk.prompt_token_ids ?? next.promptTokenIds;
  if (choice.token_ids) next.tokenIds = [...next.tokenIds, ...choice.token_ids];
  if (choice.provenance) next.provenance = [...next.provenance, ...choice.provenance];
  next.finishReason = choice.finish_reason ?? next.finishReason;
  next.seed = choice.seed ?? next.seed;
  return next;
}

function withCallPart(calls, part) {
  const next = [...calls];
  const before = next[part.index] ?? { id: part.id, type: "function", function: { name: "", arguments: "" } };
  next[part.index] = {
    ...before,
    function: {
      name: before.function.name + (part.function?.name ?? ""),
      arguments: before.function.arguments + (part.function?.arguments ?? ""),
    },
  };
  return next;
}

/** Ask and return the complete answer. */
export async function askWhole(path, body, signal) {
  let answer = null;
  for await (const grown of ask(path, body, signal)) answer = grown;
  return answer;
}

/** Hand a growing answer to `show` some 25 times a second: a page cannot show more, and tokens come faster. */
export async function follow(answers, show) {
  let [answer, shownAt] = [null, 0];
  for await (answer of answers) {
    if (performance.now() - shownAt < 40) continue;
    show(answer);
    shownAt = performance.now();
  }
  if (answer) show(answer);
}

/** Ask again with the same seed, without speculation and with nothing cached; say what differs. */
export async function checkSameTokens(answer, signal) {
  const body = { ...repeatable(answer), speculation: { mode: "off" }, cache_salt: randomName() };
  const again = await askWhole(answer.path, body, signal);
  if (again.error) return { error: again.error };
  const given = answer.branchedAt ?? 0;
  const [first, second] = [answer.tokenIds.slice(given), again.tokenIds];
  const differs = first.findIndex((id, index) => id !== second[index]);
  const isSame = first.length === second.length && differs === -1 && bytesEqual(newText(answer), again.text);
  return {
    isSame,
    numTokens: first.length,
    numBytes: utf8(newText(answer)).length,
    firstDifference: differs === -1 ? Math.min(first.length, second.length) : differs,
    seconds: answer.seconds,
    plainSeconds: again.seconds,
  };
}

/** Return the text that the server wrote, without what a branch was given. */
function newText(answer) {
  return answer.text.slice(answer.givenText.length);
}

function randomName() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("");
}

function utf8(text) {
  return new TextEncoder().encode(text);
}

function bytesEqual(a, b) {
  const [first, second] = [utf8(a), utf8(b)];
  return first.length === second.length && first.every((byte, index) => byte === second[index]);
}

/** Score token ids: return for each its id, text, bytes, and log-probability (null for the first). */
export async function scoreTokens(tokenIds, signal) {
  const body = { prompt: tokenIds, max_tokens: 0, echo: true, logprobs: 0 };
  const { choices } = await post(COMPLETIONS, body, signal);
  const { tokens, token_logprobs: logprobs } = choices[0].logprobs;
  return tokenIds.map((id, index) => ({ id, ...readToken(tokens[index]), logprob: logprobs[index] }));
}

/** Read a token as logprobs write it: text, or `bytes:\xe2\x80` where it is no whole characters. */
export function readToken(written) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(written)) return { text: written, bytes: Array.from(utf8(written)) };
  const bytes = written
    .slice(8)
    .split("\\x")
    .map((byte) => Number.parseInt(byte, 16));
  return { text: null, bytes };
}

/** Return the text of tokens together; special tokens are left out. */
export async function textOf(tokenIds, signal) {
  const reply = await post("detokenize", { tokens: tokenIds, skip_special_tokens: true }, signal);
  return reply.prompt;
}

/**
 * Go on from an answer's first `place` tokens with another one.
 *
 * A branch asks for a completion behind token ids, so it goes on exactly as the server would; a schema or tools
 * cannot be held in mid-answer and are left out.
 */
export async function* branch(answer, place, tokenId, signal) {
  const given = [...answer.tokenIds.slice(0, place), tokenId];
  const { messages, prompt, response_format, tools, tool_choice, ...fields } = repeatable(answer);
  const body = { ...fields, prompt: [...answer.promptTokenIds, ...given] };
  if (answer.maxTokens !== null) body.max_tokens = Math.max(1, answer.maxTokens - given.length);
  const givenText = await textOf(given, signal);
  const steps = answer.provenance.slice(0, place);
  const chosen = { source: "you", step: null };
  for await (const grown of ask(COMPLETIONS, body, signal)) {
    yield {
      ...grown,
      promptTokenIds: answer.promptTokenIds,
      maxTokens: answer.maxTokens,
      text: givenText + grown.text,
      givenText,
      tokenIds: [...given, ...grown.tokenIds],
      provenance: [...steps, chosen, ...grown.provenance],
      branchedAt: given.length,
    };
  }
}
