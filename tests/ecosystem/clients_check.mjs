// The OpenAI SDK's runTools and the Vercel AI SDK against a real server; run by clients_check.py.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const city = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };

const client = new OpenAI({ baseURL, apiKey: "none-needed" });
let calls = 0;
const weather = async ({ city }) => (calls++, `sunny in ${city}`);
const runner = client.chat.completions.runTools({
  model,
  max_tokens: 200,
  messages: [{ role: "user", content: "Weather in Paris?" }],
  tool_choice: { type: "function", function: { name: "weather" } },
  tools: [{ type: "function", function: { name: "weather", parse: JSON.parse, function: weather, parameters: city } }],
});
await runner.done();
assert(calls >= 1, "runTools called the function");

const vercel = createOpenAICompatible({ name: "draftline", baseURL, apiKey: "none", supportsStructuredOutputs: true })(model);
const tools = { weather: tool({ inputSchema: jsonSchema(city), execute: async () => "sunny" }) };
const asking = { model: vercel, tools, toolChoice: "required", prompt: "Weather in Paris?", maxOutputTokens: 200 };
const whole = await generateText(asking);
assert.equal(whole.toolCalls[0].toolName, "weather");
const streamed = streamText(asking);
const kinds = new Set();
for await (const part of streamed.fullStream) kinds.add(part.type);
assert(kinds.has("tool-call"), [...kinds].join());
const schema = jsonSchema({ type: "object", properties: { age: { type: "integer" } }, required: ["age"] });
const made = await generateObject({ model: vercel, schema, prompt: "Invent a person.", maxOutputTokens: 100 });
assert(Number.isInteger(made.object.age));
console.log("ok");
