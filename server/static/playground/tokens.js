/** The token view: any text as the model reads it, and how much each token surprised it. */
import { post } from "./api.js";
import { scoreTokens } from "./answers.js";
import { Surprise } from "./answer_view.js";
import { Distribution } from "./distribution.js";
import { TokenText } from "./token_text.js";
import { Choices, Problem, count, html, useAsync, useDebounced, useState } from "./ui.js";

const EXAMPLE =
  "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy cat.\nNaïve café 😀";
const MAX_SCORED = 2000;

async function loadText(text, signal) {
  if (text === "") return [];
  const { tokens } = await post("tokenize", { prompt: text }, signal);
  if (tokens.length === 0) return [];
  if (tokens.length > MAX_SCORED)
    throw new Error(`${count(tokens.length)} tokens; this view scores ${count(MAX_SCORED)} at most.`);
  return scoreTokens(tokens, signal);
}

/** The view. */
export function Tokens() {
  const [text, setText] = useState(EXAMPLE);
  const [shading, setShading] = useState("tokens");
  const [place, setPlace] = useState(null);
  const settled = useDebounced(text, 300);
  const { value, error, isLoading } = useAsync((signal) => loadText(settled, signal), [settled]);
  const tokens = value ?? [];
  return html`<section class="single" aria-label="Tokens of a text">
    <label class="field is-wide"
      ><span>Text</span>
      <textarea
        rows="5"
        value=${text}
        onInput=${(event) => (setPlace(null), setText(event.target.value))}
      ></textarea>
    </label>
    <div class="toolbar">
      <${Choices}
        label="Shading"
        options=${[
          ["tokens", "Tokens"],
          ["surprise", "Surprise"],
        ]}
        value=${shading}
        onChange=${setShading}
      />
      <span role="status"
        >${isLoading ? "Scoring…" : `${count(tokens.length)} tokens, ${count(text.length)} characters`}</span
      >
    </div>
    <${Problem} error=${error} />
    ${tokens.length > 0 && html`<${TokenText} label="Tokens" tokens=${tokens} shading=${shading} selected=${place} onSelect=${setPlace} />`}
    ${shading === "surprise" && html`<${Surprise} tokens=${tokens} />`}
    <p class="muted hint">Choose a token to see what the model thought could stand there.</p>
    ${
      place > 0 &&
      tokens[place] &&
      html`<${Distribution}
        tokenIds=${tokens.slice(0, place).map((token) => token.id)}
        chosen=${tokens[place].id}
        onClose=${() => setPlace(null)}
      />`
    }
    ${place === 0 && html`<p class="muted">Nothing stands before the first token, so the model says nothing of it.</p>`}
  </section>`;
}
