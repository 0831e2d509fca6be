"""LangChain's ChatOpenAI, through the Responses API."""

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIError
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """The weather."""
    return f"-3 in {city}"


async def run(urls, streamed):
    models = {
        name: ChatOpenAI(
            model="any",
            base_url=url,
            api_key="none",
            max_retries=0,
            use_responses_api=True,
            output_version="responses/v1",
            include=["reasoning.encrypted_content"],
            store=False,
            streaming=streamed,
        )
        for name, url in urls.items()
    }
    ask = _streamed if streamed else _whole
    return {
        "plain": (await ask(models["plain"], "hi")).text,
        "reasoning": _reasoning(await ask(models["reasoning"], "hi")),
        "tools": await _tools(ask, models["tools"].bind_tools([get_weather])),
        "structured": await _structured(models["structured"]),
        "refused": await _error(ask, models["refused"]),
        "broken": await _error(ask, models["broken"]),
    }


async def _whole(model, messages):
    return await model.ainvoke(messages)


async def _streamed(model, messages):
    whole = None
    async for chunk in model.astream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


def _reasoning(message):
    (block,) = [block for block in message.content if block["type"] == "reasoning"]
    return {"reasoning": "".join(part["text"] for part in block["summary"]), "text": message.text}


async def _tools(ask, model):
    question = HumanMessage("weather?")
    first = await ask(model, [question])
    (call,) = first.tool_calls
    output = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    last = await ask(model, [question, first, output])
    return {"called": call["args"], "text": last.text}


async def _structured(model):
    return (await model.with_structured_output(Weather, method="json_schema").ainvoke("hi")).model_dump()


async def _error(ask, model):
    try:
        return f"no error: {await ask(model, 'hi')}"
    except APIError as error:
        return error.message


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(**json.loads(sys.argv[1])))))
