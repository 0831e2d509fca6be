"""The simple agent: ask the model, run the tools it calls, ask again, until it answers."""

from __future__ import annotations

import asyncio
import itertools
import time

import orjson

from gymlet.serve.agent import Agent, Timings
from gymlet.serve.ids import new_id
from gymlet.serve.peers import SessionPeer
from gymlet.wire.deltas import Json


class SimpleAgent(Agent):
    """The loop of a tool-using model.

    It ends when the model is cut short, when it answers without a call, or after ``max_steps`` calls of the model.
    """

    async def respond(self, params: Json, session: SessionPeer, timings: Timings) -> Json:
        """One response that holds the items of all steps; its usage is their sum."""
        history = _items(params.get("input"))
        output: list[Json] = []
        usage: Json | None = None
        for step in itertools.count(1):
            started = time.perf_counter()
            response = await self.model.respond({**params, "stream": False, "input": history + output})
            timings.add("model_s", started)
            output += response["output"]
            usage = _sum(usage, response["usage"])
            calls = [item for item in response["output"] if item["type"] == "function_call"]
            if not calls or response["incomplete_details"] or step == self.options.max_steps:
                break
            started = time.perf_counter()
            output += await asyncio.gather(*(_call(session, call) for call in calls))
            timings.add("tools_s", started)
        return {**response, "output": output, "usage": usage}


def _items(given: object) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return list(given) if isinstance(given, list) else []


async def _call(session: SessionPeer, call: Json) -> Json:
    try:
        arguments = orjson.loads(call["arguments"])
    except orjson.JSONDecodeError as error:
        text = orjson.dumps({"error": f"the arguments are no JSON: {error}"}).decode()
    else:
        text = await _run_tool(session, call["name"], arguments)
    item = {"type": "function_call_output", "call_id": call["call_id"], "output": text}
    return {"id": new_id("fco_"), **item, "status": "completed"}


async def _run_tool(session: SessionPeer, name: str, arguments: object) -> str:
    if not isinstance(arguments, dict):
        return orjson.dumps({"error": "the arguments must be a JSON object"}).decode()
    return await session.call_tool(name, arguments)


def _sum(total: Json | None, usage: Json | None) -> Json | None:
    """Two usage objects added up, details included."""
    if total is None or usage is None:
        return total or usage
    return {
        key: _sum(total[key], value) if isinstance(value, dict) else total[key] + value for key, value in usage.items()
    }
