/** Prometheus' text format, and what can be said of two readings of it. */

/** Read a page of metrics: a map from a name with its labels, but for the model's, to a number. */
export function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = (match[2] ?? "").split(",").filter((label) => label && !label.startsWith("model_name="));
    const name = match[1].replace(/^draftline_/, "") + (labels.length ? `{${labels.join(",")}}` : "");
    samples.set(name, Number(match[3].replace("+Inf", "Infinity")));
  }
  return samples;
}

/** Return the sum of a counter over all its labels. */
function total(samples, name) {
  let sum = 0;
  for (const [key, value] of samples) if (key === name || key.startsWith(`${name}{`)) sum += value;
  return sum;
}

/** Return how much a counter grew between two readings; one that began anew counts from 0. */
function growth(before, now, name) {
  const grown = total(now, name) - total(before, name);
  return grown < 0 ? total(now, name) : grown;
}

function share(part, whole) {
  return whole > 0 ? part / whole : null;
}

/** Return a quantile of what a histogram took in between two readings, null where that was nothing. */
export function quantile(before, now, name, q) {
  const buckets = [];
  for (const [key, value] of now) {
    const match = new RegExp(`^${name}_bucket\\{le="([^"]+)"\\}$`).exec(key);
    if (match)
      buckets.push([match[1] === "+Inf" ? Infinity : Number(match[1]), value - (before.get(key) ?? 0)]);
  }
  buckets.sort(([a], [b]) => a - b);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let [lower, below] = [0, 0];
  for (const [upper, cumulative] of buckets) {
    if (cumulative >= q * all) {
      if (upper === Infinity) return lower;
      return lower + ((upper - lower) * (q * all - below)) / (cumulative - below);
    }
    [lower, below] = [upper, cumulative];
  }
  return lower;
}

/** Return a point of every chart from two readings `seconds` apart; null where nothing happened. */
export function between(before, now, seconds) {
  const grew = (name) => growth(before, now, name);
  return {
    generated: grew("generation_tokens_total") / seconds,
    prompt: grew("prompt_tokens_total") / seconds,
    running: now.get("num_requests_running") ?? 0,
    waiting: now.get("num_requests_waiting") ?? 0,
    kvCache: now.get("kv_cache_usage_perc") ?? 0,
    hitRate: share(grew("prefix_cache_hits_total"), grew("prefix_cache_queries_total")),
    acceptance: share(
      grew("spec_decode_num_accepted_tokens_total"),
      grew("spec_decode_num_draft_tokens_total"),
    ),
    firstToken: quantile(before, now, "time_to_first_token_seconds", 0.5),
    firstToken95: quantile(before, now, "time_to_first_token_seconds", 0.95),
  };
}
