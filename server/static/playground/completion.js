/** Completion: a text that the model goes on with, as it stands, without a chat template. */
import { AnswerView, Variants } from "./answer_view.js";
import { COMPLETIONS, ask, branch, follow } from "./answers.js";
import { SidePanel } from "./chat.js";
import { sharedFields } from "./request.js";
import { Settings } from "./settings.js";
import { current, update, useStore } from "./store.js";
import { Problem, html, useEffect, useState } from "./ui.js";

const MAX_VARIANTS = 10;

const keep = (change) =>
  update(({ completion }) => ({ completion: { ...completion, ...change(completion) } }));

function put(variant, answer) {
  keep(({ variants }) => {
    const next = [...variants];
    next[variant] = answer;
    return { variants: next, shown: variant };
  });
}

/** The view. */
export function Completion() {
  const { completion } = useStore();
  const { prompt, variants, shown } = completion;
  const [control, setControl] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => () => control?.abort(), [control]);
  const answer = variants[shown];

  async function start(makeAnswers) {
    const running = new AbortController();
    keep(({ variants }) => ({ variants: variants.slice(1 - MAX_VARIANTS) }));
    const variant = current().completion.variants.length;
    setError(null);
    setControl(running);
    try {
      await follow(makeAnswers(running.signal), (grown) => put(variant, grown));
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
    } finally {
      setControl(null);
    }
  }
  function generate() {
    try {
      const body = { prompt, ...sharedFields(current().settings) };
      start((signal) => ask(COMPLETIONS, body, signal));
    } catch (problem) {
      setError(problem);
    }
  }
  function send(event) {
    event.preventDefault();
    if (prompt !== "") generate();
  }
  const goOn = () => keep(() => ({ prompt: prompt + answer.text, variants: [], shown: 0 }));
  return html`<div class="columns">
    <section class="conversation" aria-label="Completion">
      <form class="prompt" onSubmit=${send}>
        <label class="field is-wide"
          ><span>Prompt</span>
          <textarea
            rows="6"
            value=${prompt}
            onInput=${(event) => keep(() => ({ prompt: event.target.value }))}
            onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send(event)}
          ></textarea>
        </label>
        <div class="toolbar">
          ${
            control
              ? html`<button type="button" class="primary" onClick=${() => control.abort()}>Stop</button>`
              : html`<button type="submit" class="primary" disabled=${prompt === ""}>Generate</button>`
          }
          ${answer && !control && html`<button type="button" onClick=${goOn}>Take the answer into the prompt</button>`}
          <span class="spacer"></span>
          <${Variants}
            variants=${variants}
            shown=${shown}
            onShow=${(number) => keep(() => ({ shown: number }))}
          />
        </div>
      </form>
      <${Problem} error=${error} />
      ${
        answer &&
        html`<article class="message is-assistant" role="log" aria-label="Answer">
          <${AnswerView}
            key=${shown}
            answer=${answer}
            isRunning=${control !== null}
            isMarkdown=${false}
            onBranch=${(place, tokenId) => start((signal) => branch(answer, place, tokenId, signal))}
            onRegenerate=${generate}
            onChange=${(part) => put(shown, { ...answer, ...part })}
          />
        </article>`
      }
    </section>
    <aside class="side">
      <${SidePanel}><${Settings} /><//>
    </aside>
  </div>`;
}
