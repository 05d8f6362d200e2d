/** The next-token view: what the model thinks of every token at one place, and what filters leave of it. */
import { post } from "./api.js";
import { applyFilters, decodeRow, order, removedBy } from "./sampler.js";
import { updateSettings, useStore } from "./store.js";
import { quoted } from "./token_text.js";
import { Problem, Slider, count, html, percent, useAsync, useMemo, useState } from "./ui.js";

const NUM_BARS = 20;

/** Ask for the distribution behind token ids, and for the texts of its likeliest tokens. */
async function loadDistribution(tokenIds, signal) {
  const reply = await post("v1/distribution", { prompt: tokenIds, top_logprobs: NUM_BARS }, signal);
  const logprobs = decodeRow(reply.logprobs);
  const names = new Map(reply.top_logprobs.map((entry) => [entry.token_id, entry]));
  return { logprobs, ranked: order(logprobs), names };
}

/** Read filters from settings; what is empty changes nothing. */
export function filtersOf(settings) {
  const or = (value, rest) => (value === "" ? rest : value);
  return {
    temperature: or(settings.temperature, 1),
    topK: or(settings.top_k, 0),
    topP: or(settings.top_p, 1),
    minP: or(settings.min_p, 0),
  };
}

/**
 * Show the distribution behind `tokenIds`, with the token `chosen` there marked.
 *
 * `onChoose(tokenId)` goes on from another token; without it bars are not buttons.
 */
export function Distribution({ tokenIds, chosen, onChoose, onClose }) {
  const { settings } = useStore();
  const [filters, setFilters] = useState(() => filtersOf(settings));
  const { value, error, isLoading } = useAsync(
    (signal) => loadDistribution(tokenIds, signal),
    [tokenIds.join()],
  );
  const result = useMemo(
    () => value && applyFilters(value.logprobs, value.ranked, filters),
    [value, filters],
  );
  const change = (part) => setFilters({ ...filters, ...part });
  return html`<section class="distribution" aria-label="Next-token distribution">
    <header>
      <h2>Next token</h2>
      ${onClose && html`<button type="button" onClick=${onClose}>Close</button>`}
    </header>
    <p class="muted">
      What the model thought could follow here. The sliders do what the server's filters do.
    </p>
    <${Problem} error=${error} />
    ${isLoading && html`<p role="status">Asking the server…</p>`}
    ${result && html`<${Bars} distribution=${value} result=${result} chosen=${chosen} onChoose=${onChoose} />`}
    <fieldset class="sliders">
      <legend>Filters</legend>
      <${Slider}
        label="temperature"
        min=${0}
        max=${2}
        step=${0.01}
        rest=${1}
        value=${filters.temperature}
        onChange=${(temperature) => change({ temperature: temperature === "" ? 1 : temperature })}
      />
      <${Slider}
        label="top-k"
        min=${0}
        max=${100}
        step=${1}
        rest=${0}
        value=${filters.topK}
        hint="0 is off"
        onChange=${(topK) => change({ topK: topK === "" ? 0 : topK })}
      />
      <${Slider}
        label="top-p"
        min=${0.01}
        max=${1}
        step=${0.01}
        rest=${1}
        value=${filters.topP}
        onChange=${(topP) => change({ topP: topP === "" ? 1 : topP })}
      />
      <${Slider}
        label="min-p"
        min=${0}
        max=${1}
        step=${0.01}
        rest=${0}
        value=${filters.minP}
        onChange=${(minP) => change({ minP: minP === "" ? 0 : minP })}
      />
      <button type="button" onClick=${() => use(filters)}>Use these for the next answer</button>
    </fieldset>
  </section>`;
}

function use({ temperature, topK, topP, minP }) {
  updateSettings({ temperature, top_k: topK, top_p: topP, min_p: minP });
}

function Bars({ distribution, result, chosen, onChoose }) {
  const { logprobs, ranked, names } = distribution;
  const shown = Array.from(ranked.subarray(0, NUM_BARS));
  const chosenRank = chosen === undefined ? -1 : ranked.indexOf(chosen);
  const bar = (id, rank) =>
    html`<${Bar}
      key=${id}
      entry=${names.get(id)}
      id=${id}
      rank=${rank}
      result=${result}
      model=${Math.exp(logprobs[id])}
      isChosen=${id === chosen}
      onChoose=${onChoose}
    />`;
  const seen = shown.reduce((sum, id) => sum + Math.exp(logprobs[id]), 0);
  const rest = shown.reduce((sum, _, rank) => sum - result.after(rank), 1);
  const [before, after] = [Math.max(0, 1 - seen), rest < 1e-9 ? 0 : rest];
  const others = `The other ${count(ranked.length - shown.length)}: ${percent(before)} before the filters, ${percent(after)} after.`;
  const kept =
    `Kept: ${count(result.numKept)} of ${count(ranked.length)} tokens, ` +
    `which had ${percent(result.keptMass)} at this temperature.`;
  return html`<ol class="bars" data-num-kept=${result.numKept}>
      ${shown.map(bar)}
    </ol>
    ${
      chosenRank >= NUM_BARS &&
      html`<ol class="bars" start=${chosenRank + 1}>
        ${bar(chosen, chosenRank)}
      </ol>`
    }
    <p class="rest">${others}</p>
    <p class="kept" role="status">${kept}</p>`;
}

function Bar({ entry, id, rank, result, model, isChosen, onChoose }) {
  const after = result.after(rank);
  const reason = removedBy(result, rank);
  const name = entry ? quoted({ text: textOfEntry(entry), bytes: entry.bytes }) : `token ${id}`;
  const content = html`<span class="bar-name"
      >${onChoose && !isChosen && html`<span class="visually-hidden">Continue with </span>`}${name}</span
    >
    <span class="bar-track" aria-hidden="true">
      <span class="bar-model" style=${{ width: `${100 * model}%` }}></span>
      <span class="bar-after" style=${{ width: `${100 * after}%` }}></span>
    </span>
    <span class="bar-share">${reason ? html`<s>${percent(model)}</s>` : percent(after)}</span>
    <span class="bar-note"
      >${isChosen ? "chosen" : reason && html`<span class="visually-hidden">cut by </span>${reason}`}</span
    >`;
  const names = ["bar", reason && "is-cut", isChosen && "is-chosen"].filter(Boolean).join(" ");
  return html`<li class=${names} data-token-id=${id} data-after=${after}>
    ${
      onChoose && !isChosen
        ? html`<button
            type="button"
            title="Continue the answer with this token"
            onClick=${() => onChoose(id)}
          >
            ${content}
          </button>`
        : html`<div>${content}</div>`
    }
  </li>`;
}

function textOfEntry(entry) {
  return entry.token.startsWith("bytes:\\x") ? null : entry.token;
}
