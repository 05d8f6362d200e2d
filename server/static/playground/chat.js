/** Chat: a conversation, kept in the browser, whose answers can be regenerated, branched and looked into. */
import { AnswerView, Variants } from "./answer_view.js";
import { CHAT, ask, branch, follow } from "./answers.js";
import { STARTERS } from "./presets.js";
import { chatBody } from "./request.js";
import { Settings } from "./settings.js";
import {
  current,
  deleteConversation,
  newConversation,
  shownConversation,
  titleOf,
  update,
  updateMessages,
  updateSettings,
  useStore,
} from "./store.js";
import { Problem, html, useEffect, useRef, useState } from "./ui.js";

/** Keep the variant that grows in the message it belongs to. */
function putVariant(id, place, variant, answer) {
  updateMessages(id, (messages) =>
    messages.map((message, index) => {
      if (index !== place) return message;
      const variants = [...message.variants];
      variants[variant] = answer;
      return { ...message, variants, shown: variant };
    }),
  );
}

/** Keep the end of a growing page in sight, unless the reader has scrolled away from it. */
function useFollowing(isGrowing, content) {
  const isAtEnd = useRef(true);
  useEffect(() => {
    const page = document.scrollingElement;
    const look = () => {
      isAtEnd.current = page.scrollTop + page.clientHeight > page.scrollHeight - 40;
    };
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  useEffect(() => {
    if (isGrowing && isAtEnd.current) scrollTo(0, document.scrollingElement.scrollHeight);
  }, [isGrowing, content]);
}

/** The view. */
export function Chat() {
  useStore();
  const conversation = shownConversation();
  const { messages, id } = conversation;
  const [running, setRunning] = useState(null); // { control, place }
  const [error, setError] = useState(null);
  const active = useRef(null); // the control of what runs, which the next run ends
  useEffect(() => () => active.current?.abort(), []);
  useFollowing(running !== null, messages);

  async function start(place, makeAnswers) {
    const control = new AbortController();
    const variant =
      current().conversations.find((one) => one.id === id).messages[place]?.variants?.length ?? 0;
    active.current?.abort();
    active.current = control;
    setError(null);
    setRunning({ control, place });
    if (variant === 0)
      updateMessages(id, (all) => [...all.slice(0, place), { role: "assistant", variants: [], shown: 0 }]);
    try {
      await follow(makeAnswers(control.signal), (answer) => putVariant(id, place, variant, answer));
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
    } finally {
      if (active.current === control) setRunning(null);
      updateMessages(id, (all) =>
        all.filter((message) => message.role !== "assistant" || message.variants.length),
      );
    }
  }
  function answerTo(history) {
    let body;
    try {
      body = chatBody(history, current().settings);
    } catch (problem) {
      setError(problem);
      return;
    }
    start(history.length, (signal) => ask(CHAT, body, signal));
  }
  function say(content) {
    const history = [...messages, { role: "user", content }];
    updateMessages(id, () => history);
    answerTo(history);
  }
  function edit(place, content) {
    const history = [...messages.slice(0, place), { role: "user", content }];
    updateMessages(id, () => history);
    answerTo(history);
  }
  const branchAt = (index, answer) => (place, tokenId) => {
    updateMessages(id, (all) => all.slice(0, index + 1));
    start(index, (signal) => branch(answer, place, tokenId, signal));
  };
  const change = (index, message) => (part) =>
    putVariant(id, index, message.shown, { ...message.variants[message.shown], ...part });
  return html`<div class="columns">
    <section class="conversation" aria-label="Conversation">
      <${Conversations} id=${id} isBusy=${running !== null} />
      <div class="messages" role="log" aria-label="Messages">
        ${messages.length === 0 && html`<${Starters} onSay=${say} />`}
        ${messages.map((message, index) =>
          message.role === "user"
            ? html`<${UserMessage}
                key=${index}
                content=${message.content}
                isBusy=${running !== null}
                onEdit=${(content) => edit(index, content)}
              />`
            : html`<article key=${index} class="message is-assistant">
                <${Variants}
                  ...${message}
                  onShow=${(shown) => updateMessages(id, (all) => all.map((one, place) => (place === index ? { ...one, shown } : one)))}
                />
                ${
                  message.variants[message.shown]
                    ? html`<${AnswerView}
                        key=${message.shown}
                        answer=${message.variants[message.shown]}
                        isRunning=${running?.place === index}
                        onBranch=${branchAt(index, message.variants[message.shown])}
                        onRegenerate=${() => (updateMessages(id, (all) => all.slice(0, index + 1)), answerTo(messages.slice(0, index)))}
                        onChange=${change(index, message)}
                      />`
                    : html`<p class="waiting" role="status">Waiting for the first token…</p>`
                }
              </article>`,
        )}
      </div>
      <${Problem} error=${error} />
      <${Composer} isRunning=${running !== null} onSay=${say} onStop=${() => running.control.abort()} />
    </section>
    <aside class="side">
      <${SidePanel}><${Settings} isChat /><//>
    </aside>
  </div>`;
}

/** Settings, folded away where the window is narrow. */
export function SidePanel({ children }) {
  const isWide = matchMedia("(min-width: 1000px)").matches;
  return html`<details class="panel" open=${isWide}>
    <summary>Settings</summary>
    ${children}
  </details>`;
}

function Starters({ onSay }) {
  return html`<div class="starters">
    <p>
      Say something, or begin with one of these. Every answer can be opened: its tokens, what else the model
      thought of, what was guessed and what was cached.
    </p>
    ${STARTERS.map(
      ([name, text, settings]) =>
        html`<button type="button" key=${name} onClick=${() => (updateSettings(settings), onSay(text))}>
          <strong>${name}</strong><span>${text}</span>
        </button>`,
    )}
  </div>`;
}

function Conversations({ id, isBusy }) {
  const { conversations } = useStore();
  return html`<div class="toolbar">
    <label class="grow"
      ><span class="visually-hidden">Conversation</span>
      <select value=${id} disabled=${isBusy} onChange=${(event) => update({ current: event.target.value })}>
        ${conversations.map((one) => html`<option key=${one.id} value=${one.id}>${titleOf(one)}</option>`)}
      </select>
    </label>
    <button type="button" disabled=${isBusy} onClick=${newConversation}>New</button>
    <button type="button" disabled=${isBusy} onClick=${() => deleteConversation(id)}>Delete</button>
  </div>`;
}

function UserMessage({ content, isBusy, onEdit }) {
  const [draft, setDraft] = useState(null);
  if (draft === null) {
    return html`<article class="message is-user">
      <p class="plain">${content}</p>
      <button type="button" class="link" disabled=${isBusy} onClick=${() => setDraft(content)}>Edit</button>
    </article>`;
  }
  const send = () => (setDraft(null), onEdit(draft));
  return html`<article class="message is-user">
    <textarea
      aria-label="Edit the message"
      rows="4"
      value=${draft}
      onInput=${(event) => setDraft(event.target.value)}
    ></textarea>
    <div class="toolbar">
      <button type="button" class="primary" disabled=${draft.trim() === ""} onClick=${send}>Send</button>
      <button type="button" onClick=${() => setDraft(null)}>Cancel</button>
    </div>
  </article>`;
}

function Composer({ isRunning, onSay, onStop }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  function send(event) {
    event.preventDefault();
    if (isRunning || text.trim() === "") return;
    setText("");
    onSay(text);
    field.current.focus();
  }
  const key = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && send(event);
  return html`<form class="composer" onSubmit=${send}>
    <textarea
      ref=${field}
      aria-label="Message"
      rows="2"
      placeholder="Message (Enter sends, Shift+Enter breaks the line)"
      value=${text}
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${key}
    ></textarea>
    ${
      isRunning
        ? html`<button type="button" class="primary" onClick=${onStop}>Stop</button>`
        : html`<button type="submit" class="primary" disabled=${text.trim() === ""}>Send</button>`
    }
  </form>`;
}
