/** What the page remembers: settings, presets and conversations, in this browser; keys are never among it. */
import { useEffect, useState } from "./ui.js";

const NAME = "draftline.playground.1";
const MAX_CONVERSATIONS = 50;
const MAX_BYTES = 4_000_000; // browsers give a site some 5 MB

/** Settings whose empty values are left to the model. */
export const DEFAULT_SETTINGS = Object.freeze({
  system: "",
  temperature: "",
  top_k: "",
  top_p: "",
  min_p: "",
  repetition_penalty: "",
  max_tokens: 512,
  seed: "",
  stop: "",
  speculation: "",
  schema: "",
  tools: "",
});

const EMPTY = {
  theme: "",
  settings: DEFAULT_SETTINGS,
  presets: [],
  conversations: [],
  current: null,
  completion: { prompt: "The capital of France is", variants: [], shown: 0 },
};

function load() {
  try {
    return { ...EMPTY, ...JSON.parse(localStorage.getItem(NAME) ?? "{}") };
  } catch {
    return EMPTY; // of another version, or no storage here
  }
}

let state = load();
let timer = null;
const listeners = new Set();

/** Return what is remembered now. */
export function current() {
  return state;
}

/** Change members and write them down soon. */
export function update(change) {
  state = { ...state, ...(typeof change === "function" ? change(state) : change) };
  for (const listener of listeners) listener(state);
  clearTimeout(timer);
  timer = setTimeout(save, 300);
}

function save() {
  let conversations = state.conversations;
  let text = JSON.stringify(state);
  while (text.length > MAX_BYTES && conversations.length > 1) {
    conversations = conversations.slice(0, -1); // the oldest
    text = JSON.stringify({ ...state, conversations });
  }
  try {
    localStorage.setItem(NAME, text);
  } catch {
    // No storage, or full: the page goes on, and forgets with the tab.
  }
}
addEventListener("pagehide", save);

/** Return what is remembered, and render again when it changes. */
export function useStore() {
  const [seen, setSeen] = useState(state);
  useEffect(() => {
    listeners.add(setSeen);
    setSeen(state);
    return () => listeners.delete(setSeen);
  }, []);
  return seen;
}

/** Change some settings. */
export function updateSettings(change) {
  update(({ settings }) => ({ settings: { ...settings, ...change } }));
}

/** Begin an empty conversation and return it. */
export function newConversation() {
  const conversation = { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), messages: [] };
  update(({ conversations }) => ({
    conversations: [conversation, ...conversations.filter((one) => one.messages.length)].slice(
      0,
      MAX_CONVERSATIONS,
    ),
    current: conversation.id,
  }));
  return conversation;
}

/** Return the conversation that is shown; there always is one. */
export function shownConversation() {
  return state.conversations.find((one) => one.id === state.current) ?? newConversation();
}

/** Replace the messages of a conversation by what `change` makes of them. */
export function updateMessages(id, change) {
  update(({ conversations }) => ({
    conversations: conversations.map((one) =>
      one.id === id ? { ...one, messages: change(one.messages) } : one,
    ),
  }));
}

/** Forget a conversation. */
export function deleteConversation(id) {
  update(({ conversations }) => ({
    conversations: conversations.filter((one) => one.id !== id),
    current: null,
  }));
}

/** Return a conversation's first words. */
export function titleOf(conversation) {
  const first = conversation.messages[0]?.content ?? "";
  return first.length > 40 ? `${first.slice(0, 40)}…` : first || "New conversation";
}
