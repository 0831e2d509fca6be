// The Vercel AI SDK: it validates each event that it knows, and turns the tool's round trip by itself.
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { urls, streamed } = JSON.parse(process.argv[2]);
const Weather = z.object({ city: z.string(), degrees: z.number() });
const getWeather = tool({
  description: "The weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `-3 in ${city}`,
});

async function ask(name, request = {}) {
  const model = createOpenAI({ baseURL: urls[name], apiKey: "none" }).responses("any");
  const call = { model, prompt: "hi", maxRetries: 0, stopWhen: stepCountIs(3), ...request };
  if (!streamed) return generateText(call);
  let failure;
  const stream = streamText({ ...call, onError: ({ error }) => (failure = error) });
  await stream.consumeStream();
  if (failure) throw failure;
  const [text, reasoningText, steps] = [await stream.text, await stream.reasoningText, await stream.steps];
  return { text, reasoningText, steps, output: request.output && (await stream.output) };
}

async function reasoning() {
  const { reasoningText, text } = await ask("reasoning");
  return { reasoning: reasoningText, text };
}

async function tools() {
  const { steps, text } = await ask("tools", { tools: { get_weather: getWeather } });
  const [call] = steps.flatMap((step) => step.toolCalls);
  return { called: call.input, text };
}

async function error(name) {
  try {
    return `no error: ${(await ask(name)).text}`;
  } catch (error) {
    return APICallError.isInstance(error) ? error.message : JSON.stringify(error.error ?? error.message ?? error);
  }
}

console.log(
  JSON.stringify({
    plain: (await ask("plain")).text,
    reasoning: await reasoning(),
    tools: await tools(),
    structured: (await ask("structured", { output: Output.object({ schema: Weather }) })).output,
    refused: await error("refused"),
    broken: await error("broken"),
  }),
);
