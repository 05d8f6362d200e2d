/** The settings of answers: sampling, seed, speculation, format, tools; presets of them. */
import { PRESETS, settingsOf } from "./presets.js";
import { update, updateSettings, useStore } from "./store.js";
import { Slider, html, useState } from "./ui.js";

const SPECULATION = [
  ["", "the server's choice"],
  ["auto", "auto"],
  ["draft", "draft model"],
  ["ngram", "n-gram lookup"],
  ["off", "off"],
];

function NumberField({ name, label, hint, settings, ...limits }) {
  const change = (event) =>
    updateSettings({ [name]: event.target.value === "" ? "" : Number(event.target.value) });
  return html`<label class="field"
    ><span>${label}</span>
    <input
      type="number"
      name=${name}
      value=${settings[name]}
      placeholder=${hint}
      onInput=${change}
      ...${limits}
    />
  </label>`;
}

function TextField({ name, label, hint, rows, settings }) {
  const change = (event) => updateSettings({ [name]: event.target.value });
  return html`<label class="field is-wide"
    ><span>${label}</span>
    <textarea
      name=${name}
      rows=${rows}
      spellcheck="false"
      placeholder=${hint}
      value=${settings[name]}
      onInput=${change}
    ></textarea>
  </label>`;
}

function Presets({ own, settings }) {
  const [name, setName] = useState("");
  function save() {
    if (name.trim() === "") return;
    update({ presets: [...own.filter(([known]) => known !== name.trim()), [name.trim(), settings]] });
    setName("");
  }
  const apply = (event) => {
    const found = settingsOf(event.target.value, own);
    if (found) update({ settings: { ...found, system: found.system || settings.system } });
    event.target.value = "";
  };
  return html`<div class="presets">
    <label class="field is-wide"
      ><span>Preset</span>
      <select onChange=${apply}>
        <option value="">choose…</option>
        ${[...PRESETS, ...own].map(([known]) => html`<option key=${known} value=${known}>${known}</option>`)}
      </select>
    </label>
    <div class="joined">
      <input
        aria-label="Name of a preset"
        placeholder="save these as…"
        maxlength="40"
        value=${name}
        onInput=${(event) => setName(event.target.value)}
      />
      <button type="button" onClick=${save} disabled=${name.trim() === ""}>Save</button>
      <button
        type="button"
        onClick=${() => update({ presets: own.filter(([known]) => known !== name.trim()) })}
        disabled=${!own.some(([known]) => known === name.trim())}
      >
        Delete
      </button>
    </div>
  </div>`;
}

/** The panel of settings; `isChat` shows what only chat has. */
export function Settings({ isChat }) {
  const { settings, presets } = useStore();
  const set = (name) => (value) => updateSettings({ [name]: value });
  return html`<section class="settings" aria-label="Settings">
    <h2>Settings</h2>
    <${Presets} own=${presets} settings=${settings} />
    ${isChat && html`<${TextField} name="system" label="System prompt" rows="3" hint="the chat template's own" settings=${settings} />`}
    <div class="sliders">
      <${Slider}
        label="temperature"
        min=${0}
        max=${2}
        step=${0.01}
        rest=${1}
        value=${settings.temperature}
        onChange=${set("temperature")}
      />
      <${Slider}
        label="top-k"
        hint="0 is off"
        min=${0}
        max=${100}
        step=${1}
        rest=${0}
        value=${settings.top_k}
        onChange=${set("top_k")}
      />
      <${Slider}
        label="top-p"
        min=${0.01}
        max=${1}
        step=${0.01}
        rest=${1}
        value=${settings.top_p}
        onChange=${set("top_p")}
      />
      <${Slider}
        label="min-p"
        min=${0}
        max=${1}
        step=${0.01}
        rest=${0}
        value=${settings.min_p}
        onChange=${set("min_p")}
      />
      <${Slider}
        label="repetition penalty"
        min=${0.5}
        max=${2}
        step=${0.01}
        rest=${1}
        value=${settings.repetition_penalty}
        onChange=${set("repetition_penalty")}
      />
    </div>
    <div class="fields">
      <${NumberField}
        name="max_tokens"
        label="max tokens"
        hint="as many as fit"
        min="1"
        settings=${settings}
      />
      <${NumberField}
        name="seed"
        label="seed"
        hint="a new one each time"
        step="1"
        min=${Number.MIN_SAFE_INTEGER}
        max=${Number.MAX_SAFE_INTEGER}
        settings=${settings}
      />
    </div>
    <label class="field is-wide"
      ><span>Speculation <small>changes the speed, never the answer</small></span>
      <select
        name="speculation"
        value=${settings.speculation}
        onChange=${(event) => updateSettings({ speculation: event.target.value })}
      >
        ${SPECULATION.map(([mode, name]) => html`<option key=${mode} value=${mode}>${name}</option>`)}
      </select>
    </label>
    <${TextField} name="stop" label="Stop strings" rows="2" hint="one a line" settings=${settings} />
    <${TextField}
      name="schema"
      label="JSON schema of the answer"
      rows="3"
      hint="{ … }"
      settings=${settings}
    />
    ${isChat && html`<${TextField} name="tools" label="Tools" rows="3" hint="[ … ] as OpenAI's" settings=${settings} />`}
  </section>`;
}
