"""Pydantic AI: its agent turns the tool's round trip, and validates what is structured."""

import asyncio
import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, ModelAPIError, NativeOutput
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(BaseModel):
    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather."""
    return f"-3 in {city}"


async def run(urls, streamed):
    async def ask(name, **agent):
        provider = OpenAIProvider(base_url=urls[name], api_key="none")
        settings = {"max_retries": 0, "openai_reasoning_summary": "auto"}
        it = Agent(OpenAIResponsesModel("any", provider=provider), model_settings=settings, retries=0, **agent)
        if not streamed:
            return await it.run("hi")
        async with it.run_stream_events("hi") as events:
            return [event async for event in events][-1].result

    return {
        "plain": (await ask("plain")).output,
        "reasoning": _reasoning(await ask("reasoning")),
        "tools": _called(await ask("tools", tools=[get_weather])),
        "structured": (await ask("structured", output_type=NativeOutput(Weather))).output.model_dump(),
        "refused": await _error(ask("refused")),
        "broken": await _error(ask("broken")),
    }


def _parts(result, kind):
    return [part for message in result.all_messages() for part in message.parts if isinstance(part, kind)]


def _reasoning(result):
    return {"reasoning": "".join(part.content for part in _parts(result, ThinkingPart)), "text": result.output}


def _called(result):
    (call,) = _parts(result, ToolCallPart)
    return {"called": call.args_as_dict(), "text": result.output}


async def _error(asking):
    try:
        return f"no error: {(await asking).output}"
    except ModelAPIError as error:
        return str(error)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(**json.loads(sys.argv[1])))))
