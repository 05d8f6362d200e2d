/** Text as its tokens: coloured, walked through with the arrow keys, explained under the pointer. */
import { html, percent, useRef, useState } from "./ui.js";

/** What the shading of tokens can mean. */
export const SHADINGS = [
  ["tokens", "Tokens"],
  ["surprise", "Surprise"],
  ["provenance", "Provenance"],
];

const SOURCES = {
  draft: "proposed by the draft model, accepted",
  ngram: "looked up in earlier text, accepted",
  grammar: "the only token that the grammar allows",
  bonus: "the model's own, behind a draft that was right to its end",
  target: "the model's own",
  you: "chosen by you",
};

/** What each source is called in the legend, in order. */
export const SOURCE_NAMES = {
  target: "model",
  draft: "draft model",
  ngram: "n-gram lookup",
  grammar: "grammar",
  bonus: "bonus",
  you: "you",
};

/** Return -log2 of a token's probability: its surprise in bits. */
export function surprise(token) {
  return token.logprob === null || token.logprob === undefined ? null : -token.logprob / Math.LN2;
}

function shown(token) {
  if (token.text === null) return token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("·");
  return token.text === "" ? "∅" : token.text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}

/** Name a token for people who do not see its colour. */
export function quoted(token) {
  return token.text === null ? `bytes ${shown(token)}` : JSON.stringify(token.text);
}

function classOf(token, index, shading, tokens) {
  const names = ["token"];
  if (token.text === null) names.push("is-partial");
  if (shading === "tokens") names.push(`hue-${index % 5}`);
  if (shading === "surprise") names.push(`surprise-${Math.min(9, Math.floor((surprise(token) ?? 0) / 1.5))}`);
  if (shading === "provenance") {
    names.push(token.isCached ? "is-cached" : `source-${token.source ?? "prompt"}`);
    if (token.step !== undefined && token.step !== null && token.step !== tokens[index - 1]?.step)
      names.push("begins-step");
  }
  return names.join(" ");
}

function Card({ token, anchor }) {
  const bits = surprise(token);
  const rows = [
    ["token", quoted(token)],
    ["id", token.id],
    ["bytes", token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")],
  ];
  if (bits !== null)
    rows.push(["probability", percent(Math.exp(token.logprob))], ["surprise", `${bits.toFixed(2)} bits`]);
  if (token.source) rows.push(["source", SOURCES[token.source] ?? token.source]);
  if (token.step !== undefined && token.step !== null) rows.push(["step", token.step]);
  if (token.isCached !== undefined) rows.push(["prompt", token.isCached ? "from the cache" : "computed"]);
  const left = Math.max(8, Math.min(anchor.left, innerWidth - 300));
  const isLow = anchor.bottom + 190 > innerHeight;
  const place = isLow ? { left, bottom: innerHeight - anchor.top + 6 } : { left, top: anchor.bottom + 6 };
  return html`<dl class="card" role="tooltip" style=${place}>
    ${rows.map(
      ([name, value]) =>
        html`<div key=${name}>
          <dt>${name}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

/**
 * Show tokens; each has { id, text, bytes } and may have { logprob, source, step, isCached }.
 *
 * One token is a tab stop, arrows move it; Enter or a click calls `onSelect(index)`.
 */
export function TokenText({ label, tokens, shading, selected, onSelect, weights }) {
  const list = useRef(null);
  const [focused, setFocused] = useState(0);
  const [hovered, setHovered] = useState(null);

  function move(event) {
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: 10,
      ArrowUp: -10,
      Home: -Infinity,
      End: Infinity,
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(tokens.length - 1, focused + step));
    setFocused(index);
    list.current.children[index].focus();
  }
  function show(index, event) {
    const anchor = event.currentTarget.getBoundingClientRect();
    setHovered({ index, anchor });
  }
  return html`<div
    class="token-text shade-${shading}"
    onMouseLeave=${() => setHovered(null)}
    onFocusOut=${() => setHovered(null)}
  >
    <div ref=${list} role="listbox" aria-label=${label} aria-orientation="horizontal" onKeyDown=${move}>
      ${tokens.map(
        (token, index) =>
          html`<span
            key=${index}
            role="option"
            tabindex=${index === Math.min(focused, tokens.length - 1) ? 0 : -1}
            aria-selected=${String(index === selected)}
            aria-label=${quoted(token)}
            class=${classOf(token, index, shading, tokens)}
            style=${weights ? { "--weight": weights[index] ?? 0 } : undefined}
            onMouseEnter=${(event) => show(index, event)}
            onFocus=${(event) => (setFocused(index), show(index, event))}
            onClick=${() => (setHovered(null), onSelect?.(index))}
            onKeyDown=${(event) => event.key === "Enter" && onSelect?.(index)}
            >${shown(token)}</span
          >`,
      )}
    </div>
    ${hovered && tokens[hovered.index] && html`<${Card} token=${tokens[hovered.index]} anchor=${hovered.anchor} />`}
  </div>`;
}

/** Explain the colours of provenance. */
export function Legend({ sources, hasCached }) {
  return html`<ul class="legend" aria-label="Legend">
    ${hasCached && html`<li><span class="token is-cached">prompt</span> from the cache</li>`}
    ${Object.entries(SOURCE_NAMES)
      .filter(([source]) => sources.has(source))
      .map(
        ([source, name]) => html`<li key=${source}><span class="token source-${source}">${name}</span></li>`,
      )}
    <li><span class="token begins-step"> </span> a step begins</li>
  </ul>`;
}
