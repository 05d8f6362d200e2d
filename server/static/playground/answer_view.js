/** One answer: its text or its tokens, what it cost, and what can be done with it. */
import { hasKey } from "./api.js";
import { checkSameTokens, scoreTokens } from "./answers.js";
import { Distribution } from "./distribution.js";
import { Markdown } from "./markdown.js";
import { asCurl, asPython, repeatable } from "./request.js";
import { updateSettings } from "./store.js";
import { Legend, SHADINGS, TokenText, surprise } from "./token_text.js";
import { Choices, CopyButton, Dialog, Problem, count, html, percent, useAsync, useState } from "./ui.js";

/** Return prompt and answer as tokens with all that is known of each. */
async function loadTokens(answer, signal) {
  const { promptTokenIds, tokenIds, provenance, usage } = answer;
  const scored = await scoreTokens([...promptTokenIds, ...tokenIds], signal);
  const cached = usage?.prompt_tokens_details.cached_tokens ?? 0;
  const prompt = scored
    .slice(0, promptTokenIds.length)
    .map((token, index) => ({ ...token, isCached: index < cached }));
  const own = scored.slice(promptTokenIds.length).map((token, index) => ({ ...token, ...provenance[index] }));
  return { prompt, own };
}

/**
 * Show an answer. `onBranch(place, tokenId)` goes on differently, `onRegenerate()` asks again,
 * `onChange(change)` keeps a change to the answer.
 */
export function AnswerView({ answer, isRunning, onBranch, onRegenerate, onChange, isMarkdown = true }) {
  const [view, setView] = useState("text");
  const [isExporting, setExporting] = useState(false);
  const isDone = !isRunning && answer.tokenIds.length > 0;
  return html`<div class="answer" data-finish-reason=${answer.finishReason ?? ""}>
    ${
      answer.reasoning &&
      html`<details class="reasoning">
        <summary>Reasoning</summary>
        <p>${answer.reasoning}</p>
      </details>`
    }
    ${
      view === "text" || !isDone
        ? html`<${AnswerText} answer=${answer} isMarkdown=${isMarkdown} isRunning=${isRunning} />`
        : html`<${AnswerTokens} answer=${answer} shading=${view} onBranch=${onBranch} />`
    }
    <${Problem} error=${answer.error} />
    ${answer.warnings.map((warning) => html`<p class="warning">${warning.param}: ${warning.message}</p>`)}
    ${
      isDone &&
      html`<div class="toolbar">
        <${Choices}
          label="View"
          options=${[["text", "Text"], ...SHADINGS]}
          value=${view}
          onChange=${setView}
        />
        <span class="spacer"></span>
        <button type="button" onClick=${onRegenerate}>Regenerate</button>
        <${SameSeed} answer=${answer} onChange=${onChange} />
        <button type="button" onClick=${() => setExporting(true)}>Export</button>
      </div>`
    }
    ${!isRunning && html`<${Figures} answer=${answer} />`}
    ${isExporting && html`<${Export} answer=${answer} onClose=${() => setExporting(false)} />`}
  </div>`;
}

/** Which of an answer's variants is shown, and the way to the others. */
export function Variants({ variants, shown, onShow }) {
  if (variants.length < 2) return null;
  return html`<div class="variants" role="group" aria-label="Variants of this answer">
    <button
      type="button"
      aria-label="Previous variant"
      disabled=${shown === 0}
      onClick=${() => onShow(shown - 1)}
    >
      ‹
    </button>
    <span>${shown + 1} of ${variants.length}${variants[shown]?.branchedAt ? ", branched" : ""}</span>
    <button
      type="button"
      aria-label="Next variant"
      disabled=${shown === variants.length - 1}
      onClick=${() => onShow(shown + 1)}
    >
      ›
    </button>
  </div>`;
}

function AnswerText({ answer, isMarkdown, isRunning }) {
  const calls = answer.toolCalls.map(
    (call) =>
      html`<pre
        class="call"
        tabindex="0"
      ><code>${call.function.name}(${call.function.arguments})</code></pre>`,
  );
  const text = isMarkdown
    ? html`<${Markdown} text=${answer.text} />`
    : html`<p class="plain">${answer.text}</p>`;
  return html`${text}${calls}${isRunning && !answer.text && html`<p class="waiting" role="status">Waiting for the first token…</p>`}`;
}

function AnswerTokens({ answer, shading, onBranch }) {
  const { value, error, isLoading } = useAsync(
    (signal) => loadTokens(answer, signal),
    [answer.tokenIds.length, answer.seed],
  );
  const [place, setPlace] = useState(null);
  if (error) return html`<${Problem} error=${error} />`;
  if (isLoading) return html`<p role="status">Scoring the tokens…</p>`;
  const { prompt, own } = value;
  const choose = (tokenId) => (setPlace(null), onBranch(place, tokenId));
  return html` ${shading === "provenance" && html`<${Cache} answer=${answer} tokens=${prompt} /><${Legend} sources=${new Set(own.map((token) => token.source))} hasCached />`}
    <${TokenText}
      label="Tokens of the answer"
      tokens=${own}
      shading=${shading}
      selected=${place}
      onSelect=${setPlace}
    />
    ${shading === "surprise" && html`<${Surprise} tokens=${own} />`}
    <p class="muted hint">Choose a token to see what else the model thought of there.</p>
    ${
      place !== null &&
      html`<${Distribution}
        tokenIds=${[...answer.promptTokenIds, ...answer.tokenIds.slice(0, place)]}
        chosen=${answer.tokenIds[place]}
        onChoose=${choose}
        onClose=${() => setPlace(null)}
      />`
    }`;
}

/** Sum a text's surprise up. */
export function Surprise({ tokens }) {
  const bits = tokens.map(surprise).filter((value) => value !== null);
  if (!bits.length) return null;
  const total = bits.reduce((sum, value) => sum + value, 0);
  const mean = total / bits.length;
  const sentence =
    `${count(bits.length)} tokens, ${mean.toFixed(2)} bits each on average, perplexity ${(2 ** mean).toFixed(2)}. ` +
    "The redder, the less the model expected it.";
  return html`<p class="sum">${sentence}</p>`;
}

const ENDS = {
  end_of_prompt: () => "everything but the last token, which is always computed",
  different_token: ({ cached, prompt }) =>
    `there the cache went on with ${JSON.stringify(cached.text)}, this prompt with ${JSON.stringify(prompt.text)}`,
  evicted: () => "what followed was cached once and has made room since",
  never_seen: () => "nothing was known to follow",
  disabled: () => "this server keeps no prefix cache",
  not_used: () => "this request took nothing from the cache",
};

function Cache({ answer, tokens }) {
  const details = answer.usage?.draftline?.cache;
  const cached = answer.usage?.prompt_tokens_details.cached_tokens ?? 0;
  const end = details?.end;
  return html`<div class="cache" data-cached-tokens=${cached} data-end=${end?.reason ?? ""}>
    <p>
      ${count(cached)} of the prompt's ${count(tokens.length)} tokens came from the
      cache${end ? html`: ${(ENDS[end.reason] ?? (() => end.reason))(end)}` : ""}.
    </p>
    <details>
      <summary>Prompt</summary>
      <${TokenText} label="Tokens of the prompt" tokens=${tokens} shading="provenance" />
    </details>
  </div>`;
}

function SameSeed({ answer, onChange }) {
  const [isAsking, setAsking] = useState(false);
  async function check() {
    setAsking(true);
    const checked = await checkSameTokens(answer);
    setAsking(false);
    onChange({ checked });
  }
  const hint =
    "Asks again with this seed, without speculation and with nothing cached, and compares every byte";
  return html`<button
    type="button"
    onClick=${check}
    disabled=${isAsking || answer.seed === null}
    title=${hint}
  >
    ${isAsking ? "Asking again…" : "Same seed, same tokens?"}
  </button>`;
}

function Checked({ checked }) {
  if (!checked) return null;
  if (checked.error) return html`<p class="problem" role="alert">${checked.error}</p>`;
  const times = `${checked.seconds.toFixed(2)} s before, ${checked.plainSeconds.toFixed(2)} s without speculation and cache`;
  return checked.isSame
    ? html`<p class="checked is-same" role="status">
        Identical: ${count(checked.numTokens)} tokens, ${count(checked.numBytes)} bytes. ${times}.
      </p>`
    : html`<p class="checked is-different" role="status">
        Different from token ${checked.firstDifference} on. ${times}.
      </p>`;
}

/** The answer's figures in one line: seed, tokens, speed, cache, speculation. */
function Figures({ answer }) {
  const { usage, seed, seconds, firstSeconds, tokenIds } = answer;
  if (!usage && answer.finishReason !== "stopped") return null;
  const speculation = usage?.draftline?.speculation;
  const rate =
    seconds > firstSeconds && tokenIds.length > 1 ? (tokenIds.length - 1) / (seconds - firstSeconds) : null;
  const tokens = `${count(usage?.completion_tokens ?? tokenIds.length)} tokens${rate ? `, ${rate.toFixed(0)} tok/s` : ""}`;
  return html`<div class="figures">
      ${
        seed !== null &&
        html`<span
          >seed <code data-seed=${seed}>${String(seed)}</code> ${" "}<button
            type="button"
            class="link"
            onClick=${() => updateSettings({ seed })}
          >
            use again
          </button></span
        >`
      }
      <span>${tokens}</span>
      ${firstSeconds !== null && html`<span>first token after ${(1000 * firstSeconds).toFixed(0)} ms</span>`}
      ${usage && html`<span>cached ${count(usage.prompt_tokens_details.cached_tokens)} of ${count(usage.prompt_tokens)}</span>`}
      ${
        speculation?.drafted > 0 &&
        html`<span data-accepted=${speculation.accepted}>${describeSpeculation(speculation)}</span>`
      }
      <span>${answer.finishReason}</span>
    </div>
    <${Checked} checked=${answer.checked} />`;
}

function describeSpeculation({ accepted, drafted, estimated_speedup: speedup }) {
  const share = percent(accepted / drafted);
  return `accepted ${count(accepted)} of ${count(drafted)} proposed (${share}), speed-up × ${speedup.toFixed(2)}`;
}

function Export({ answer, onClose }) {
  const [form, setForm] = useState("curl");
  const body = repeatable(answer);
  const text = {
    curl: asCurl(answer.path, body, hasKey()),
    python: asPython(answer.path, body),
    json: JSON.stringify(body, null, 2),
  }[form];
  return html`<${Dialog} title="The same answer elsewhere" onClose=${onClose}>
    <div class="toolbar">
      <${Choices}
        label="Form"
        options=${[
          ["curl", "curl"],
          ["python", "Python"],
          ["json", "JSON"],
        ]}
        value=${form}
        onChange=${setForm}
      />
      <span class="spacer"></span><${CopyButton} text=${text} />
    </div>
    <pre class="export" tabindex="0">${text}</pre>
  <//>`;
}
