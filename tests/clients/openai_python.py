"""openai-python: create, stream(), parse, a tool's round trip by previous_response_id, errors."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from openai import APIError, AsyncOpenAI
from pydantic import BaseModel

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Weather(BaseModel):
    city: str
    degrees: int


async def run(urls, streamed):
    ask = _streamed if streamed else _whole
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
            for name, url in urls.items()
        }
        return {
            "plain": (await ask(clients["plain"], input="hi")).output_text,
            "reasoning": _reasoning(await ask(clients["reasoning"], input="hi")),
            "tools": await _tools(ask, clients["tools"]),
            "structured": (await _structured(clients["structured"], streamed)).output_parsed.model_dump(),
            "refused": await _error(ask, clients["refused"]),
            "broken": await _error(ask, clients["broken"]),
        }


async def _whole(client, **request):
    return await client.responses.create(model="any", **request)


async def _streamed(client, **request):
    async with client.responses.stream(model="any", **request) as events:
        said = "".join([event.delta async for event in events if event.type == "response.output_text.delta"])
        response = await events.get_final_response()
    assert said == response.output_text
    return response


async def _structured(client, streamed):
    if streamed:
        return await _streamed(client, input="hi", text_format=Weather)
    return await client.responses.parse(model="any", input="hi", text_format=Weather)


def _reasoning(response):
    (item,) = [item for item in response.output if item.type == "reasoning"]
    return {"reasoning": "".join(part.text for part in item.summary), "text": response.output_text}


async def _tools(ask, client):
    first = await ask(client, input="weather?", tools=[TOOL])
    (call,) = [item for item in first.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "-3"}
    last = await ask(client, input=[output], previous_response_id=first.id, tools=[TOOL])
    return {"called": json.loads(call.arguments), "text": last.output_text}


async def _error(ask, client):
    try:
        response = await ask(client, input="hi")
    except APIError as error:
        return error.message
    return f"no error: {response.status}"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(**json.loads(sys.argv[1])))))
