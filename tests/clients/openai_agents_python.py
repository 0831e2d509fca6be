"""OpenAI's Agents SDK: its runner turns the tool's round trip by itself."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.items import ReasoningItem, ToolCallItem
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def get_weather(city: str) -> str:
    """The weather."""
    return f"-3 in {city}"


async def run(urls, streamed):
    set_tracing_disabled(True)
    async with AsyncExitStack() as stack:
        models = {
            name: OpenAIResponsesModel(
                "any",
                await stack.enter_async_context(AsyncOpenAI(base_url=url, api_key="none", max_retries=0)),
            )
            for name, url in urls.items()
        }

        async def ask(name, **agent):
            settings = ModelSettings(response_include=["reasoning.encrypted_content"], store=False)
            it = Agent(name="it", model=models[name], model_settings=settings, **agent)
            if not streamed:
                return await Runner.run(it, "hi")
            result = Runner.run_streamed(it, "hi")
            async for _ in result.stream_events():
                pass
            return result

        return {
            "plain": (await ask("plain")).final_output,
            "reasoning": _reasoning(await ask("reasoning")),
            "tools": _called(await ask("tools", tools=[get_weather])),
            "structured": (await ask("structured", output_type=Weather)).final_output.model_dump(),
            "refused": await _error(ask("refused")),
            "broken": await _error(ask("broken")),
        }


def _reasoning(result):
    (item,) = [item.raw_item for item in result.new_items if isinstance(item, ReasoningItem)]
    assert item.encrypted_content
    return {"reasoning": "".join(part.text for part in item.summary), "text": result.final_output}


def _called(result):
    (call,) = [item.raw_item for item in result.new_items if isinstance(item, ToolCallItem)]
    return {"called": json.loads(call.arguments), "text": result.final_output}


async def _error(asking):
    try:
        return f"no error: {(await asking).final_output}"
    except APIError as error:
        return error.message


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(**json.loads(sys.argv[1])))))
