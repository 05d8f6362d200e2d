/** The attention view: which earlier tokens each token looks at, by layer and head, for a short text. */
import { post } from "./api.js";
import { readToken } from "./answers.js";
import { TokenText, quoted } from "./token_text.js";
import {
  Problem,
  html,
  percent,
  useAsync,
  useDebounced,
  useEffect,
  useMemo,
  useRef,
  useState,
} from "./ui.js";

const EXAMPLE = "The animal didn't cross the street because it was too tired.";

async function load(text, layer, signal) {
  if (text.trim() === "") return null;
  const reply = await post("v1/attention", { prompt: text, layer }, signal);
  const tokens = reply.tokens.map(({ token_id: id, text: written }) => ({ id, ...readToken(written) }));
  return { ...reply, tokens };
}

const LABEL_WIDTH = 110; // CSS pixels beside the last rows, whose names would not fit otherwise

/**
 * Draw a head's weights: a row for each query, a column for each key, none above the diagonal.
 *
 * With `labels` each row's token stands behind its last cell, where it names the column below as well.
 */
function draw(canvas, { rows, size, selected, labels }) {
  const ratio = devicePixelRatio || 1;
  canvas.height = Math.round(size * ratio);
  canvas.width = canvas.height + (labels ? Math.round(LABEL_WIDTH * ratio) : 0);
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const color = (name) => style.getPropertyValue(name);
  const cell = canvas.height / rows.length;
  const side = Math.max(1, cell - ratio);
  for (const [query, weights] of rows.entries()) {
    for (const [key, weight] of weights.entries()) {
      context.globalAlpha = 1;
      context.fillStyle = color("--line");
      context.fillRect(key * cell, query * cell, side, side);
      context.globalAlpha = Math.min(1, weight ** 0.6);
      context.fillStyle = color("--attention");
      context.fillRect(key * cell, query * cell, side, side);
    }
  }
  context.globalAlpha = 1;
  if (labels && cell >= 9 * ratio) {
    context.fillStyle = color("--ink");
    context.font = `${Math.min(13 * ratio, 0.7 * cell)}px ui-monospace, monospace`;
    context.textBaseline = "middle";
    for (const [row, text] of labels.entries())
      context.fillText(text, (row + 1) * cell + 5 * ratio, (row + 0.5) * cell);
  }
  if (selected !== null && selected < rows.length) {
    context.strokeStyle = color("--attention");
    context.lineWidth = 2 * ratio;
    context.strokeRect(0, selected * cell, (selected + 1) * cell, cell);
  }
}

function Triangle({ rows, size, selected = null, labels = null, onPoint }) {
  const canvas = useRef(null);
  useEffect(() => draw(canvas.current, { rows, size, selected, labels }), [rows, size, selected, labels]);
  const point = (event) => {
    const query = Math.floor((event.offsetY / event.currentTarget.clientHeight) * rows.length);
    onPoint?.(Math.max(0, Math.min(rows.length - 1, query)));
  };
  const width = size + (labels ? LABEL_WIDTH : 0);
  return html`<canvas
    ref=${canvas}
    style=${{ width: `${width}px`, height: `${size}px` }}
    aria-hidden="true"
    onClick=${point}
  ></canvas>`;
}

/** The view. */
export function Attention() {
  const [text, setText] = useState(EXAMPLE);
  const [layer, setLayer] = useState(0);
  const [head, setHead] = useState(0);
  const [query, setQuery] = useState(null);
  const settled = useDebounced(text, 400);
  const { value, error, isLoading } = useAsync((signal) => load(settled, layer, signal), [settled, layer]);
  const [seen, setSeen] = useState(null); // what was there last stays until the next is
  useEffect(() => value && setSeen(value), [value]);
  return html`<section class="single" aria-label="Attention">
    <label class="field is-wide"
      ><span>Text, 128 tokens at most</span>
      <textarea
        rows="3"
        value=${text}
        onInput=${(event) => (setQuery(null), setText(event.target.value))}
      ></textarea>
    </label>
    <${Problem} error=${error} />
    ${error?.status === 404 && html`<p class="muted">Start the server with <code>--enable-attention</code> to see this view.</p>`}
    ${isLoading && !seen && html`<p role="status">Computing…</p>`}
    ${seen && !error && html`<${Heads} reply=${seen} layer=${layer} setLayer=${setLayer} head=${Math.min(head, seen.num_heads - 1)} setHead=${setHead} query=${query} setQuery=${setQuery} />`}
  </section>`;
}

function Heads({ reply, layer, setLayer, head, setHead, query, setQuery }) {
  const { tokens, attention } = reply;
  const place = Math.min(query ?? tokens.length - 1, tokens.length - 1);
  const weights = attention[head][place];
  const labels = useMemo(() => tokens.map((token) => (token.text ?? "…").trim()), [tokens]);
  const strongest = [...weights.entries()].sort(([, a], [, b]) => b - a).slice(0, 5);
  return html` <div class="toolbar">
      <label class="layer"
        >layer <output>${layer}</output>
        <input
          type="range"
          min="0"
          max=${reply.num_layers - 1}
          value=${layer}
          onInput=${(event) => setLayer(Number(event.target.value))}
        />
      </label>
    </div>
    <div class="heads" role="group" aria-label="Heads">
      ${attention.map(
        (rows, index) =>
          html`<button
            type="button"
            key=${index}
            aria-pressed=${String(index === head)}
            onClick=${() => setHead(index)}
          >
            <${Triangle} rows=${rows} size=${72} /><span>head ${index}</span>
          </button>`,
      )}
    </div>
    <div class="triangle">
      <${Triangle}
        rows=${attention[head]}
        size=${Math.min(520, 40 + 22 * tokens.length, innerWidth - 48 - LABEL_WIDTH)}
        selected=${place}
        labels=${labels}
        onPoint=${setQuery}
      />
      <div>
        <h2>Layer ${layer}, head ${head}</h2>
        <p class="muted">
          A row is a token that looks, a column one that it looks at. Nothing lies above the diagonal: no
          token sees what comes later. Choose a token to see what it looks at.
        </p>
        <${TokenText}
          label="Tokens"
          tokens=${tokens}
          shading="attention"
          selected=${place}
          onSelect=${setQuery}
          weights=${weights}
        />
        <ol class="strongest">
          ${strongest.map(([key, weight]) => html`<li key=${key}><code>${quoted(tokens[key])}</code> ${percent(weight)}</li>`)}
        </ol>
      </div>
    </div>`;
}
