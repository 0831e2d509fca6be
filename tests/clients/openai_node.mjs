// openai-node: create, stream(), parse, a tool's round trip, errors. Its stream() is the strictest reader of events.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const { urls, streamed } = JSON.parse(process.argv[2]);
const Weather = z.object({ city: z.string(), degrees: z.number() });
const TOOL = {
  type: "function",
  name: "get_weather",
  description: "The weather.",
  strict: true,
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};

const client = (name) => new OpenAI({ baseURL: urls[name], apiKey: "none", maxRetries: 0 });

// A streamed response has no output_text.
const textOf = ({ output }) =>
  output.flatMap((item) => (item.type === "message" ? item.content.map((part) => part.text) : [])).join("");

async function ask(name, request, method = "create") {
  const responses = client(name).responses;
  if (!streamed) return responses[method]({ model: "any", ...request });
  const stream = responses.stream({ model: "any", ...request });
  let said = "";
  stream.on("response.output_text.delta", (event) => (said += event.delta));
  const response = await stream.finalResponse();
  if (said !== textOf(response)) throw new Error(`streamed ${said}, whole ${textOf(response)}`);
  return response;
}

async function reasoning() {
  const response = await ask("reasoning", { input: "hi" });
  const [item] = response.output.filter((each) => each.type === "reasoning");
  return { reasoning: item.summary.map((part) => part.text).join(""), text: textOf(response) };
}

async function tools() {
  const first = await ask("tools", { input: "weather?", tools: [TOOL] });
  const [call] = first.output.filter((each) => each.type === "function_call");
  const output = { type: "function_call_output", call_id: call.call_id, output: "-3" };
  const last = await ask("tools", { input: [output], previous_response_id: first.id, tools: [TOOL] });
  return { called: JSON.parse(call.arguments), text: textOf(last) };
}

async function structured() {
  const request = { input: "hi", text: { format: zodTextFormat(Weather, "weather") } };
  return (await ask("structured", request, "parse")).output_parsed;
}

async function error(name) {
  try {
    return `no error: ${textOf(await ask(name, { input: "hi" }))}`;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return error.message;
  }
}

console.log(
  JSON.stringify({
    plain: textOf(await ask("plain", { input: "hi" })),
    reasoning: await reasoning(),
    tools: await tools(),
    structured: await structured(),
    refused: await error("refused"),
    broken: await error("broken"),
  }),
);
