/** Presets of settings that come with the page, and questions to begin with. */
import { DEFAULT_SETTINGS } from "./store.js";

const PERSON = {
  type: "object",
  required: ["name", "age", "city"],
  additionalProperties: false,
  properties: {
    name: { type: "string", maxLength: 30 },
    age: { type: "integer" },
    city: { type: "string", maxLength: 30 },
  },
};
const WEATHER = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city.",
      parameters: { type: "object", required: ["city"], properties: { city: { type: "string" } } },
    },
  },
];

/** Named changes to the defaults. */
export const PRESETS = [
  ["Model's defaults", {}],
  ["Greedy", { temperature: 0 }],
  ["Wide", { temperature: 1.2, min_p: 0.05 }],
  ["A JSON object", { schema: JSON.stringify(PERSON, null, 2), max_tokens: 128 }],
  ["With a tool", { tools: JSON.stringify(WEATHER, null, 2), temperature: 0 }],
];

/** Return the settings of a preset, the page's or the reader's. */
export function settingsOf(name, own) {
  const found = [...PRESETS, ...own].find(([known]) => known === name);
  return found && { ...DEFAULT_SETTINGS, ...found[1] };
}

/** Questions for an empty conversation: a name, a text, and settings that show something. */
export const STARTERS = [
  ["Ask a question", "What is the capital of Japan, and what is it known for?", {}],
  [
    "See speculation work",
    "Repeat this list three times, word for word:\n1. apples from the north garden\n2. pears from the south garden\n3. plums from the old orchard",
    { temperature: 0, max_tokens: 200 },
  ],
  ["Force a JSON object", "Invent a person.", { schema: JSON.stringify(PERSON, null, 2), max_tokens: 128 }],
];
