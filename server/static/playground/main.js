/** The playground: a head with its views, the key where one is needed, and the view that the address names. */
import { Attention } from "./attention.js";
import { ServerError, get, setKey } from "./api.js";
import { Chat } from "./chat.js";
import { Completion } from "./completion.js";
import { Monitor } from "./monitor.js";
import { update, useStore } from "./store.js";
import { Tokens } from "./tokens.js";
import { html, render, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./ui.js";

const VIEWS = {
  chat: ["Chat", Chat],
  completion: ["Completion", Completion],
  tokens: ["Tokens", Tokens],
  attention: ["Attention", Attention],
  server: ["Server", Monitor],
};

function viewOfAddress() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "chat";
}

function useView() {
  const [view, setView] = useState(viewOfAddress);
  useEffect(() => {
    const follow = () => setView(viewOfAddress());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return view;
}

/** Ask for the served model until it is there; return { model, problem, needsKey, tryKey }. */
function useModel() {
  const [state, setState] = useState({});
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    let timer = null;
    const askForKey = () => setState((now) => ({ ...now, needsKey: true }));
    get("v1/models").then(
      ({ data }) => setState({ model: data[0] }),
      (error) => {
        const needsKey = error instanceof ServerError && error.status === 401;
        setState({ needsKey, problem: needsKey ? null : error.message });
        if (!needsKey) timer = setTimeout(() => setAttempt((number) => number + 1), 1000);
      },
    );
    addEventListener("draftline-needs-key", askForKey);
    return () => (clearTimeout(timer), removeEventListener("draftline-needs-key", askForKey));
  }, [attempt]);
  return { ...state, retry: () => setAttempt((number) => number + 1) };
}

function KeyForm({ retry }) {
  const [key, setOwn] = useState("");
  const [isWrong, setWrong] = useState(false);
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  async function send(event) {
    event.preventDefault();
    setKey(key.trim());
    try {
      await get("v1/models");
      retry();
    } catch {
      setKey(null);
      setWrong(true);
    }
  }
  return html`<form class="key" onSubmit=${send}>
    <label for="key">This server needs an API key. It stays in this tab.</label>
    <div class="joined">
      <input
        ref=${field}
        id="key"
        type="password"
        autocomplete="off"
        required
        value=${key}
        onInput=${(event) => setOwn(event.target.value)}
      />
      <button type="submit" class="primary">Open</button>
    </div>
    ${isWrong && html`<p class="problem" role="alert">The server does not know this key.</p>`}
  </form>`;
}

/** Tell whether the system asks for dark pages, and render again when it changes its mind. */
function useSystemIsDark() {
  const query = useMemo(() => matchMedia("(prefers-color-scheme: dark)"), []);
  const [isDark, setDark] = useState(query.matches);
  useEffect(() => {
    const follow = () => setDark(query.matches);
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, [query]);
  return isDark;
}

function ThemeButton() {
  const { theme } = useStore();
  const systemIsDark = useSystemIsDark();
  const isDark = theme === "" ? systemIsDark : theme === "dark";
  useLayoutEffect(() => {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  }, [isDark]);
  return html`<button type="button" onClick=${() => update({ theme: isDark ? "light" : "dark" })}>
    ${isDark ? "Light" : "Dark"}
  </button>`;
}

function Head({ view, model }) {
  return html`<header class="head">
    <a class="brand" href="#chat">draftline</a>
    <nav aria-label="Views">
      ${Object.entries(VIEWS).map(([name, [title]]) => html`<a key=${name} href=${`#${name}`} aria-current=${name === view ? "page" : undefined}>${title}</a>`)}
    </nav>
    <span class="model" title="The model that is served">${model?.id ?? ""}</span>
    <a href="docs">API</a>
    <${ThemeButton} />
  </header>`;
}

function App() {
  const view = useView();
  const { model, problem, needsKey, retry } = useModel();
  const { theme } = useStore();
  const [title, View] = VIEWS[view];
  useEffect(() => {
    document.title = `${title} · draftline`;
  }, [title]);
  return html`<${Head} view=${view} model=${model} />
    <main>
      <h1 class="visually-hidden">${title}</h1>
      ${needsKey && html`<${KeyForm} retry=${retry} />`}
      ${problem && html`<p class="problem" role="alert">${problem} Asking again…</p>`}
      ${model && !needsKey && html`<${View} key=${view + theme} />`}
    </main>`;
}

render(html`<${App} />`, document.getElementById("app"));
