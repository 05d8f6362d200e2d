/**
 * The server's chain of filters, over one row of log-probabilities: temperature, then top-k, top-p and min-p.
 *
 * The rules are those of engine/sampling/logits_processors.py, tested against it: the likeliest token always
 * stays, and tokens tied with the last one kept all stay.
 */

/** Read a row of float32, little-endian, from base64. */
export function decodeRow(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

/** Return token ids from the likeliest to the least likely; of equals the lower id first. */
export function order(logprobs) {
  return Uint32Array.from(logprobs.keys()).sort((a, b) => logprobs[b] - logprobs[a] || a - b);
}

/** Return which filter ends where, as numbers of tokens of `ranked` that it leaves, and their probabilities. */
export function applyFilters(logprobs, ranked, { temperature, topK, topP, minP }) {
  if (temperature === 0) return greedy(ranked);
  const scaled = Float64Array.from(ranked, (id) => logprobs[id] / temperature);
  const weights = scaled.map((logit) => Math.exp(logit - scaled[0]));
  const afterTopK = topK > 0 ? withTies(scaled, Math.min(topK, ranked.length)) : ranked.length;
  const afterTopP = topP < 1 ? withTies(scaled, nucleus(weights, afterTopK, topP)) : afterTopK;
  const afterMinP = minP > 0 ? atLeast(scaled, afterTopP, scaled[0] + Math.log(minP)) : afterTopP;
  const total = sum(weights, ranked.length);
  const kept = sum(weights, afterMinP);
  return {
    ranked,
    afterTopK,
    afterTopP: Math.min(afterTopP, afterTopK),
    numKept: Math.min(afterMinP, afterTopP, afterTopK),
    keptMass: kept / total,
    before: (rank) => weights[rank] / total,
    after: (rank) => (rank < afterMinP ? weights[rank] / kept : 0),
  };
}

function greedy(ranked) {
  const one = (rank) => (rank === 0 ? 1 : 0);
  return { ranked, afterTopK: 1, afterTopP: 1, numKept: 1, keptMass: 1, before: one, after: one };
}

/** Tell which filter removed the token of a rank, null where none did. */
export function removedBy(result, rank) {
  if (rank < result.numKept) return null;
  if (rank >= result.afterTopK) return "top-k";
  return rank >= result.afterTopP ? "top-p" : "min-p";
}

function sum(values, length) {
  let total = 0;
  for (let index = 0; index < length; index += 1) total += values[index];
  return total;
}

/** Extend the first `length` values by those that equal the last of them. */
function withTies(values, length) {
  let end = length;
  while (end < values.length && values[end] === values[length - 1]) end += 1;
  return end;
}

/** Return how few of the first `length` weights have together a share of `topP` of all of those. */
function nucleus(weights, length, topP) {
  const wanted = topP * sum(weights, length);
  let mass = 0;
  for (let index = 0; index < length; index += 1) {
    mass += weights[index];
    if (mass >= wanted) return index + 1;
  }
  return length;
}

function atLeast(values, length, threshold) {
  let end = length;
  while (end > 1 && values[end - 1] < threshold) end -= 1;
  return end;
}
