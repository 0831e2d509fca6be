"""Who may come in, and under which name: keys, web pages, request ids."""

import logging

import aiohttp
import orjson
import pytest
from aiohttp import web

from gymlet.config.schema import HeadServer
from gymlet.serve.gate import check_reach
from gymlet.serve.peers import RemoteAgents

KEYS = "head_server.api_key=[first-key,second-key]"
HI = {"input": "hi"}
STREAMED = {"input": "hi", "stream": True}
PAGE = "http://page.example"
EVERYWHERE = "0.0.0.0"  # noqa: S104

LET_IN = {
    "a bearer": {"Authorization": "Bearer first-key"},
    "another of the keys": {"Authorization": "bearer  second-key "},
    "an x-api-key": {"x-api-key": "second-key"},
    "an x-api-key beside an empty bearer": {"Authorization": "Bearer ", "x-api-key": "first-key"},
}
LEFT_OUT = {
    "no key": {},
    "another key": {"Authorization": "Bearer third-key"},
    "the beginning of a key": {"Authorization": "Bearer first-ke"},
    "an empty key": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": "Basic first-key"},
    "both keys as one": {"Authorization": "Bearer first-key,second-key"},
    "letters that are none of ASCII": {"x-api-key": "schlüssel"},
}


@pytest.mark.parametrize("headers", LET_IN.values(), ids=LET_IN)
async def test_who_has_a_key_is_let_in(provider, gymlet, headers):
    server = await gymlet(provider.url, "plain", KEYS)
    assert (await server.post("/v1/responses", HI, **headers))[0] == 200


@pytest.mark.parametrize("headers", LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("path", ["/v1/responses", "/mcqa_simple_agent/run", "/mcqa/verify", "/nowhere"])
async def test_who_has_none_is_not(provider, gymlet, caplog, path, headers):
    caplog.set_level(logging.DEBUG)
    server = await gymlet(provider.url, "plain", KEYS)
    status, _, raw = await server.post(path, STREAMED, **headers)
    error = orjson.loads(raw)["error"]
    assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert "head_server.api_key" in error["message"]
    assert provider.requests == []
    assert "third-key" not in caplog.text


async def test_health_and_nothing_else_is_open(provider, gymlet):
    server = await gymlet(provider.url, "plain", KEYS)
    assert await server.get_json("/health") == (200, {"status": "ok"})
    for path in ("/global_config_dict_yaml", "/server_instances", "/v1/models", "/policy_model/health"):
        assert (await server.get_json(path))[0] == 401


async def test_without_a_key_of_its_own_any_is_accepted(provider, gymlet):
    server = await gymlet(provider.url)
    assert (await server.post("/v1/responses", HI, Authorization="Bearer none"))[0] == 200


async def test_a_collector_shows_the_key(provider, gymlet):
    server = await gymlet(provider.url, "boxed-A", KEYS)
    for key, expected in (("first-key", ["mcqa_simple_agent"]), ("wrong", None)):
        agents = RemoteAgents(server.url, key)
        try:
            if expected:
                assert await agents.agent_names() == expected
            else:
                with pytest.raises(Exception, match="not one of this server's"):
                    await agents.agent_names()
        finally:
            await agents.close()


async def test_an_environment_elsewhere_is_shown_its_key(provider, gymlet):
    elsewhere = await gymlet(provider.url, "plain", KEYS)
    mcqa = "++mcqa.resources_servers.mcqa"
    server = await gymlet(
        provider.url, "boxed-A", f"{mcqa}.base_url='{elsewhere.url}/mcqa'", f"{mcqa}.api_key=second-key"
    )
    row = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    status, verified = await server.post_json("/mcqa_simple_agent/run", row)
    assert (status, verified["reward"]) == (200, 1.0)


REACH = {
    "this machine": (HeadServer(), None),
    "this machine, IPv6": (HeadServer(host="::1"), None),
    "this machine's name": (HeadServer(host="localhost"), None),
    "all addresses": (HeadServer(host=EVERYWHERE), "is required to listen on 0.0.0.0"),
    "all addresses, IPv6": (HeadServer(host="::"), "is required to listen on ::"),
    "a name": (HeadServer(host="gym.example"), "is required to listen on gym.example"),
    "all addresses, with a key": (HeadServer(host=EVERYWHERE, api_key="k"), None),
    "all addresses, whoever comes": (HeadServer(host=EVERYWHERE, allow_anonymous=True), None),
    "an empty key": (HeadServer(api_key=""), "must not be empty"),
    "white space for a key": (HeadServer(api_key=("k", " ")), "must not be empty"),
    "no keys": (HeadServer(api_key=()), "must not be empty"),
    "an empty key for whoever comes": (HeadServer(api_key="", allow_anonymous=True), "must not be empty"),
}


@pytest.mark.parametrize(("head", "words"), REACH.values(), ids=REACH)
def test_others_are_not_let_in_by_accident(head, words):
    told = [str(problem) for problem in check_reach(head)]
    assert told == [] if words is None else words in told[0]


@pytest.mark.parametrize("body", [HI, STREAMED], ids=["whole", "streamed"])
async def test_a_page_that_is_not_named_may_not_spend_the_key(provider, gymlet, body):
    server = await gymlet(provider.url)
    for origin in (PAGE, "null", "http://127.0.0.1:3000"):
        status, headers, raw = await server.post("/v1/responses", body, Origin=origin)
        error = orjson.loads(raw)["error"]
        assert (status, error["code"]) == (403, "origin_not_allowed")
        assert "head_server.cors_origins" in error["message"]
        assert "Access-Control-Allow-Origin" not in headers
    async with server.client.options(
        server.url + "/v1/responses", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    ) as response:
        assert response.status == 403
    assert provider.requests == []


ANSWERS = {
    "whole": ("/v1/responses", HI, 200),
    "streamed": ("/v1/responses", STREAMED, 200),
    "wrong": ("/v1/responses", {}, 400),
    "nowhere": ("/nowhere", HI, 404),
    "without a key": ("/v1/responses", None, 401),
}


@pytest.mark.parametrize(("path", "body", "expected"), ANSWERS.values(), ids=ANSWERS)
async def test_a_page_that_is_named_may_read_what_it_gets(provider, gymlet, path, body, expected):
    server = await gymlet(provider.url, "plain", f"head_server.cors_origins=['{PAGE}/']", KEYS)
    key = {} if body is None else {"Authorization": "Bearer first-key"}
    status, headers, _ = await server.post(path, body or {}, Origin=PAGE, **key)
    assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (expected, PAGE, "Origin")
    assert "x-request-id" in headers["Access-Control-Expose-Headers"]
    assert (await server.post(path, body or {}, Origin="http://other.example", **key))[0] == 403


async def test_a_page_may_ask_before_it_asks(provider, gymlet):
    server = await gymlet(provider.url, "plain", f"head_server.cors_origins=['{PAGE}']", KEYS)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    async with server.client.options(server.url + "/v1/responses", headers={"Origin": PAGE, **asked}) as response:
        told = {name: value for name, value in response.headers.items() if name.startswith("Access-Control")}
        assert (response.status, await response.read()) == (204, b"")
    assert told["Access-Control-Allow-Origin"] == PAGE
    assert told["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
    assert "POST" in told["Access-Control-Allow-Methods"]


@pytest.fixture
async def naming_provider(serve):
    """A provider that names its requests."""

    async def completions(request):
        body = orjson.loads(await request.read())
        if body["model"] == "broken":
            return web.json_response({"error": {"message": "no"}}, status=400, headers={"x-request-id": "of-provider"})
        message = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
        return web.json_response(message, headers={"x-request-id": "of-provider"})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    return await serve(app)


@pytest.mark.parametrize("model", ["good", "broken"])
@pytest.mark.parametrize("body", [HI, STREAMED], ids=["whole", "streamed"])
async def test_a_request_has_one_name(naming_provider, gymlet, body, model):
    server = await gymlet(naming_provider.url, model)
    _, headers, _ = await server.post("/v1/responses", body, **{"x-request-id": "of-client:1"})
    assert (headers["x-request-id"], headers["x-provider-request-id"]) == ("of-client:1", "of-provider")
    for harmful in ("a b", "x" * 129, "ü", '"'):
        _, headers, _ = await server.post("/v1/responses", body, **{"x-request-id": harmful})
        assert (headers["x-request-id"], headers["x-provider-request-id"]) == ("of-provider", "of-provider")


@pytest.mark.parametrize("body", [HI, STREAMED, {}], ids=["whole", "streamed", "wrong"])
async def test_a_request_that_nobody_named_gets_a_name(provider, gymlet, body):
    server = await gymlet(provider.url)
    names = {(await server.post("/v1/responses", body))[1]["x-request-id"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("req_") for name in names)
    assert "x-provider-request-id" not in (await server.post("/v1/responses", body))[1]


async def test_the_log_names_the_request_that_broke(provider, gymlet, monkeypatch, caplog):
    def broken(*_args, **_options):
        raise ZeroDivisionError

    server = await gymlet(provider.url)
    monkeypatch.setattr("gymlet.serve.model.check_request", broken)
    status, headers, _ = await server.post("/v1/responses", HI, **{"x-request-id": "find-me"})
    assert (status, headers["x-request-id"]) == (500, "find-me")
    assert "POST /v1/responses (find-me)" in caplog.text
    caplog.clear()
    async with aiohttp.ClientSession() as client, client.get(server.url + "/health") as response:
        assert response.status == 200
    assert not caplog.text
