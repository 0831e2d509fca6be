"""The tool loop, with a real environment behind it and a scripted model before it."""

import orjson
import pytest

CONFIG = """
weather:
  resources_servers:
    weather: {entrypoint: app.py}
weather_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: weather}
      model_server: {type: responses_api_models, name: policy_model}
"""
APP = '''
from gymlet.serve.environment import Environment, output_text, tool


class Weather(Environment):
    """Counts how often it was asked."""

    async def seed_session(self, session, row):
        if row.get("seed_breaks"):
            raise ValueError("no seed")
        session["asked"] = []

    @tool
    async def get_weather(self, session, city):
        session["asked"].append(city)
        if city == "Atlantis":
            raise LookupError("sunk")
        return {"city": city, "sky": "grey"}

    async def verify(self, session, row):
        if row.get("verify_breaks"):
            raise ValueError("no verdict")
        return {"reward": 1.0 if "cold" in output_text(row["response"]) else 0.0, "asked": session["asked"]}
'''
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
ROW = {"responses_create_params": {"input": "Weather in Paris?", "tools": [TOOL]}, "uuid": "u"}


@pytest.fixture
async def weather(tmp_path, provider, gymlet):
    """A gymlet with an environment of the user's own, in the working directory."""
    folder = tmp_path / "resources_servers" / "weather"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(APP)
    (tmp_path / "weather.yaml").write_text(CONFIG)
    model = "responses_api_models/inference_provider/configs/inference_provider.yaml"

    async def start(model_name="tool-call", *overrides):
        return await gymlet(provider.url, model_name, *overrides, configs=("weather.yaml", model))

    return start


async def test_it_runs_tools_until_the_model_answers(weather, provider):
    server = await weather()
    status, reply = await server.post_json("/weather_agent/run", ROW)
    assert (status, reply["reward"], reply["asked"]) == (200, 1.0, ["Paris"])
    kinds = [item["type"] for item in reply["response"]["output"]]
    assert kinds == ["function_call", "function_call_output", "message"]
    assert orjson.loads(reply["response"]["output"][1]["output"]) == {"city": "Paris", "sky": "grey"}
    assert reply["response"]["usage"]["total_tokens"] == 24, "usage is summed"
    assert set(reply["_ng_timings"]) == {"queued_s", "model_s", "ttft_s", "tools_s", "verify_s"}
    assert 0 < reply["_ng_timings"]["ttft_s"] <= reply["_ng_timings"]["model_s"]
    assert reply["_ng_retries"] == 0
    roles = [message["role"] for message in provider.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool"]


async def test_it_stops_after_max_steps(weather):
    server = await weather("tool-call", "++weather_agent.responses_api_agents.simple_agent.max_steps=1")
    _, reply = await server.post_json("/weather_agent/run", ROW)
    assert [item["type"] for item in reply["response"]["output"]] == ["function_call"]


async def test_verification_may_be_skipped(weather):
    server = await weather("tool-call", "++skip_verification=true", "++skip_verification_reward=0.5")
    _, reply = await server.post_json("/weather_agent/run", ROW)
    assert (reply["reward"], reply["verification_skipped"]) == (0.5, True)


FAULTS = {
    "seeding": ({"seed_breaks": True}, "environment_error", "weather: seed_session: ValueError: no seed"),
    "verifying": ({"verify_breaks": True}, "verifier_error", "weather: verify: ValueError: no verdict"),
    "a row without parameters": ({"responses_create_params": 1}, "invalid_row", "'responses_create_params' must be an object"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "failure", "words"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_named_by_whose_it_was(weather, change, failure, words):
    server = await weather()
    _, headers, raw = await server.post("/weather_agent/run", ROW | change)
    assert headers["x-gymlet-failure-class"] == failure
    assert orjson.loads(raw)["error"]["message"] == words


async def test_a_provider_that_fails_is_named_too(weather):
    server = await weather("error-429")
    status, headers, _ = await server.post("/weather_agent/run", ROW)
    assert (status, headers["x-gymlet-failure-class"]) == (429, "provider_rate_limited")


TOLD = {
    "its own fault": ("get_weather", {"city": "Atlantis"}, "LookupError: sunk"),
    "wrong arguments": ("get_weather", {"town": "Paris"}, "missing a required argument: 'city'"),
    "an unknown tool": ("get_wether", {}, "there is no tool 'get_wether'; there are: get_weather"),
}


@pytest.mark.parametrize(("name", "arguments", "words"), TOLD.values(), ids=TOLD)
async def test_what_a_call_led_to_is_told_to_the_model(weather, name, arguments, words):
    server = await weather()
    environment = server.gym.environments["weather"]
    session = await environment.open_session({})
    assert words in orjson.loads(await environment.call_tool(session, name, arguments))["error"]


async def test_a_session_lives_in_a_cookie_over_http(weather):
    server = await weather()
    assert (await server.post_json("/weather/seed_session", {}))[0] == 200
    assert "gymlet_session" in {cookie.key for cookie in server.client.cookie_jar}
    status, _, raw = await server.post("/weather/get_weather", {"city": "Oslo"})
    assert (status, orjson.loads(raw)["city"]) == (200, "Oslo")
    _, verified = await server.post_json("/weather/verify", {"response": {}})
    assert verified["asked"] == ["Oslo"]


async def test_an_environment_may_live_in_another_server(weather, gymlet, provider):
    other = await weather()
    remote = f"++weather.resources_servers.weather.base_url={other.url}/weather"
    server = await weather("tool-call", remote)
    status, reply = await server.post_json("/weather_agent/run", ROW)
    assert (status, reply["reward"], reply["asked"]) == (200, 1.0, ["Paris"])
    assert "weather" not in server.gym.environments
