/** Preact, its hooks and htm, from one vendored file, and what every view uses. */
export {
  html,
  render,
  useCallback,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "../vendor/htm/standalone.module.js";
import { html, useEffect, useRef, useState } from "../vendor/htm/standalone.module.js";

/** Run `work` each time one of `inputs` changes; return { value, error, isLoading }. Late results are dropped. */
export function useAsync(work, inputs) {
  const [result, setResult] = useState({ isLoading: true });
  useEffect(() => {
    const control = new AbortController();
    setResult({ isLoading: true });
    Promise.resolve()
      .then(() => work(control.signal))
      .then(
        (value) => control.signal.aborted || setResult({ value, isLoading: false }),
        (error) => control.signal.aborted || setResult({ error, isLoading: false }),
      );
    return () => control.abort();
  }, inputs);
  return result;
}

/** Return `value` as it was `delay` ms ago unless it has changed since, so that typing asks for one thing. */
export function useDebounced(value, delay) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), delay);
    return () => clearTimeout(timer);
  }, [value, delay]);
  return settled;
}

/** A row of buttons of which one is pressed. */
export function Choices({ label, options, value, onChange }) {
  return html`<div class="choices" role="group" aria-label=${label}>
    ${options.map(
      ([key, text]) =>
        html`<button
          type="button"
          key=${key}
          aria-pressed=${String(key === value)}
          onClick=${() => onChange(key)}
        >
          ${text}
        </button>`,
    )}
  </div>`;
}

/** A slider and a number field for the same value; an empty field means `unset`, which the slider shows as `rest`. */
export function Slider({ label, hint, value, min, max, step, rest, onChange }) {
  const shown = value === "" ? rest : value;
  const parse = (text) => (text === "" || Number.isNaN(Number(text)) ? "" : Number(text));
  return html`<div class=${value === "" ? "slider is-unset" : "slider"}>
    <label>
      <span title=${hint}>${label}</span>
      <input
        type="number"
        min=${min}
        max=${max}
        step=${step}
        value=${value}
        placeholder="model's"
        onInput=${(event) => onChange(parse(event.target.value))}
      />
    </label>
    <input
      type="range"
      aria-label=${`${label} slider`}
      min=${min}
      max=${max}
      step=${step}
      value=${shown}
      onInput=${(event) => onChange(Number(event.target.value))}
    />
  </div>`;
}

/** What went wrong, read out at once. */
export function Problem({ error }) {
  return error ? html`<p class="problem" role="alert">${error.message ?? String(error)}</p>` : null;
}

/** A dialog that is open while it is rendered; Escape and the button close it. */
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  useEffect(() => element.current.showModal(), []);
  return html`<dialog ref=${element} aria-label=${title} onClose=${onClose}>
    <header>
      <h2>${title}</h2>
      <button type="button" onClick=${() => element.current.close()}>Close</button>
    </header>
    ${children}
  </dialog>`;
}

/** A button that copies `text` and says so; none where browsers give a page no clipboard: without TLS, from elsewhere. */
export function CopyButton({ text }) {
  const [isCopied, setCopied] = useState(false);
  if (!navigator.clipboard) return null;
  async function copy() {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  }
  return html`<button type="button" onClick=${copy} aria-live="polite">
    ${isCopied ? "Copied" : "Copy"}
  </button>`;
}

/** Format a share as a percentage with as many digits as it needs. */
export function percent(share) {
  if (share === 0) return "0 %";
  if (share < 1e-4) return "< 0.01 %";
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
}

/** Format a count with its thousands apart. */
export function count(number) {
  return number.toLocaleString("en");
}
