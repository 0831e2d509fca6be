"""Calls of a provider on a real socket that fails in all the ways there are, and works the next time."""

import asyncio
import socket
import ssl
import time
from contextlib import suppress

import orjson
import pytest
from aiohttp import web
from wire.pipeline import text

from gymlet.config.problems import ConfigError
from gymlet.config.schema import ProviderOptions, bind
from gymlet.upstream.call import _Attempt
from gymlet.upstream.provider import Endpoint, Provider
from gymlet.upstream.watch import CALLS, CallLog
from gymlet.wire.errors import StreamError

OPTIONS = "++policy_model.responses_api_models.inference_provider."
WHOLE = orjson.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})
QUICK = (f"{OPTIONS}max_retries=3", f"{OPTIONS}retry_base_s=0.01")


@pytest.fixture
async def serve_statuses(serve):
    """A provider that answers with these statuses (and headers) one after the other, then well; ``app["asked"]``: when."""

    async def start(*answers):
        left, asked = list(answers), []

        async def completions(request):
            asked.append((time.monotonic(), request.headers.get("Authorization"), await request.read()))
            status, headers = left.pop(0) if left else (200, {})
            body = WHOLE if status == 200 else orjson.dumps({"error": {"message": f"no {status}"}})
            return web.Response(status=status, headers=headers, body=body, content_type="application/json")

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        running = await serve(app)
        running.asked = asked
        return running

    return start


async def ask(server, **fields):
    status, headers, raw = await server.post("/v1/responses", {"input": "hi", **fields})
    return status, headers, orjson.loads(raw)


async def until(true):
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  it is another part of the system that is waited for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
async def test_what_passes_is_tried_again(serve_statuses, gymlet, status):
    provider = await serve_statuses((status, {}), (status, {}))
    found, _, answer = await ask(await gymlet(provider.url, "m", *QUICK))
    assert (found, answer["status"], len(provider.asked)) == (200, "completed", 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_is_the_requests_fault_is_told_at_once(serve_statuses, gymlet, status):
    provider = await serve_statuses((status, {}))
    found, _, answer = await ask(await gymlet(provider.url, "m", *QUICK))
    assert (found, len(provider.asked)) == (status, 1)
    assert f"no {status}" in answer["error"]["message"]


async def test_after_the_last_attempt_the_provider_is_quoted(serve_statuses, gymlet):
    provider = await serve_statuses(*[(503, {"Retry-After": "0"})] * 9)
    found, headers, answer = await ask(await gymlet(provider.url, "m", *QUICK))
    assert (found, headers["Retry-After"], len(provider.asked)) == (503, "0", 4)
    assert answer["error"]["message"] == "the provider answered 503: no 503 (tried 4 times)"


WAITS = {
    "seconds": {"Retry-After": "1"},
    "milliseconds": {"retry-after-ms": "1000"},
    "a reset": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"},
}


@pytest.mark.parametrize("headers", WAITS.values(), ids=WAITS)
async def test_a_wait_that_is_asked_for_holds_back_every_call(serve_statuses, gymlet, headers):
    provider = await serve_statuses((429, headers))
    server = await gymlet(provider.url, "m", *QUICK)
    first = asyncio.create_task(ask(server))
    await until(lambda: provider.asked)
    await asyncio.sleep(0.2)
    answers = await asyncio.gather(first, *(ask(server) for _ in range(5)))
    assert {found for found, _, _ in answers} == {200}
    assert min(at for at, _, _ in provider.asked[1:]) - provider.asked[0][0] >= 0.99


@pytest.mark.parametrize("status", [400, 401])
async def test_an_error_of_one_request_holds_nobody_back(serve_statuses, gymlet, status):
    """Though its headers tell when limits are reset, as some providers' do on every reply."""
    provider = await serve_statuses((status, {"x-ratelimit-reset-tokens": "5s", "Retry-After": "5"}))
    server = await gymlet(provider.url, "m", *QUICK)
    found, _, answer = await ask(server)
    assert (found, "asks to wait" in answer["error"]["message"]) == (status, False)
    async with asyncio.timeout(3):
        assert (await ask(server))[0] == 200


QUOTAS = {"a day": {"Retry-After": "86400"}, "a reset": {"x-ratelimit-reset-tokens": "20h"}}


@pytest.mark.parametrize("headers", QUOTAS.values(), ids=QUOTAS)
async def test_a_wait_that_is_too_long_is_a_quota_that_is_spent(serve_statuses, gymlet, headers):
    provider = await serve_statuses((429, headers))
    server = await gymlet(provider.url, "m", *QUICK)
    found, told, answer = await ask(server)
    assert (found, told["x-gymlet-failure-class"], len(provider.asked)) == (429, "provider_quota_exhausted", 1)
    assert "max_retry_after_s" in answer["error"]["message"]
    assert (await ask(server))[0] == 200, "other calls are not held back for a day"


async def test_no_attempt_begins_after_the_time_for_them_is_over(serve_statuses, gymlet):
    provider = await serve_statuses(*[(503, {})] * 99)
    options = (f"{OPTIONS}max_retries=99", f"{OPTIONS}retry_base_s=0.2", f"{OPTIONS}max_retry_s=0.5")
    started = time.monotonic()
    found, _, _ = await ask(await gymlet(provider.url, "m", *options))
    assert found == 503
    assert provider.asked[-1][0] - provider.asked[0][0] <= 0.6
    assert time.monotonic() - started < 5


@pytest.fixture
async def serve_slow(serve):
    """A provider whose nth answer comes after so many seconds, with this status; ``asked``: when."""

    async def start(*answers):
        left, asked = list(answers), []

        async def completions(request):
            asked.append(time.monotonic())
            await request.read()
            seconds, status = left.pop(0) if left else (0, 200)
            await asyncio.sleep(seconds)
            return web.Response(status=status, body=WHOLE, content_type="application/json")

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        running = await serve(app)
        running.asked = asked
        return running

    return start


ONE = (f"{OPTIONS}num_concurrent_requests=1", *QUICK, f"{OPTIONS}max_retry_s=0.4")


async def test_the_time_for_attempts_begins_with_the_first_of_them(serve_slow, gymlet):
    provider = await serve_slow((0.6, 200), (0, 503))
    server = await gymlet(provider.url, "m", *ONE)
    answers = await asyncio.gather(*(ask(server) for _ in range(2)))
    assert [found for found, _, _ in answers] == [200, 200], "the second waited longer for its first"
    assert len(provider.asked) == 3


async def test_no_attempt_waits_in_the_queue_until_it_is_too_late(serve_slow, gymlet):
    provider = await serve_slow((0, 503), (0.8, 200))
    server = await gymlet(provider.url, "m", *ONE, f"{OPTIONS}retry_base_s=0.2")
    answers = await asyncio.gather(*(ask(server) for _ in range(2)))
    assert sorted(found for found, _, _ in answers) == [200, 503]
    assert len(provider.asked) == 2


def two(first, second, **more):
    options = {"base_url": f"[{first}/v1,{second}/v1]", "api_key": "[sk-first-0123,sk-second-0123]", **more}
    return [f"{OPTIONS}{key}={value}" for key, value in options.items()]


async def test_another_endpoint_answers_for_one_that_fails(serve_statuses, gymlet):
    bad, good = await serve_statuses(*[(503, {})] * 99), await serve_statuses()
    server = await gymlet(bad.url, "m", *QUICK, *two(bad.url, good.url))
    answers = [await ask(server) for _ in range(30)]
    assert {found for found, _, _ in answers} == {200}
    assert {key for _, key, _ in bad.asked} == {"Bearer sk-first-0123"}
    assert {key for _, key, _ in good.asked} == {"Bearer sk-second-0123"}
    assert len(bad.asked) == 8, "then it rests"
    _, limits = await server.get_json("/policy_model/limits")
    assert [each["resting_s"] is None for each in limits["endpoints"]] == [False, True]
    assert (limits["retries"], limits["in_flight"], limits["queued"]) == (8, 0, 0)


async def test_an_endpoint_that_works_again_is_found_by_one_call(serve_statuses, gymlet):
    bad, good = await serve_statuses(*[(503, {})] * 8), await serve_statuses()
    server = await gymlet(bad.url, "m", *QUICK, *two(bad.url, good.url))
    while len(bad.asked) < 8:
        await ask(server)
    await asyncio.sleep(1.1)
    for _ in range(4):
        assert (await ask(server))[0] == 200
    assert len(bad.asked) > 8


async def test_calls_of_a_session_go_to_one_endpoint(serve_statuses, gymlet):
    providers = [await serve_statuses(), await serve_statuses()]
    server = await gymlet("", "m", *QUICK, *two(*(each.url for each in providers)))
    for name in "abcdefgh":
        for _ in range(3):
            await ask(server, prompt_cache_key=name)
    counts = [len(each.asked) for each in providers]
    assert sum(counts) == 24
    assert [count % 3 for count in counts] == [0, 0]
    assert min(counts) > 0


async def test_sessions_are_spread_over_the_keys_of_one_endpoint(serve_statuses, gymlet):
    provider = await serve_statuses()
    server = await gymlet("", "m", *QUICK, *two(provider.url, provider.url))
    for name in "abcdefgh":
        await ask(server, prompt_cache_key=name)
    assert len({key for _, key, _ in provider.asked}) == 2


async def test_another_key_answers_for_one_whose_quota_is_spent(serve_statuses, gymlet):
    spent, good = await serve_statuses(*[(429, {"Retry-After": "86400"})] * 99), await serve_statuses()
    server = await gymlet("", "m", *QUICK, *two(spent.url, good.url))
    assert [(await ask(server))[0] for _ in range(6)] == [200] * 6
    assert len(spent.asked) > 0
    server = await gymlet("", "m", *QUICK, *two(spent.url, spent.url))
    found, headers, _ = await ask(server)
    assert (found, headers["x-gymlet-failure-class"]) == (429, "provider_quota_exhausted")


async def test_a_connection_that_the_provider_closed_meanwhile_is_not_a_failure(gymlet):
    """Answers well, says keep-alive, and closes as soon as the next request comes."""
    served = []

    async def handle(reader, writer):
        for turn in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            if turn:
                break
            size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(size)
            served.append(size)
            reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
            writer.write(reply + WHOLE)
        writer.close()

    provider = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = provider.sockets[0].getsockname()[1]
    server = await gymlet(f"http://127.0.0.1:{port}", "m", f"{OPTIONS}max_retries=0")
    async with provider:
        for count in range(1, 6):
            assert (await ask(server))[0] == 200
            assert len(served) == count


TIMEOUTS = {
    "first byte": (("first_byte_timeout_s=0.2",), (), "sent nothing for 0.2 s (first_byte_timeout_s)"),
    "idle": (("idle_timeout_s=0.2",), (text("a"), 5), "sent nothing for 0.2 s (idle_timeout_s)"),
    "total": (("total_timeout_s=0.5", "idle_timeout_s=0.3"), (text("a"), 0.1) * 50, "more than 0.5 s (total_timeout_s)"),
    "comments are life": (("total_timeout_s=0.9", "idle_timeout_s=0.3"), (b": hm\n\n", 0.1) * 50, "(total_timeout_s)"),
}  # fmt: skip


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("options", "pieces", "words"), TIMEOUTS.values(), ids=TIMEOUTS)
async def test_each_timeout_has_its_error(serve, gymlet, options, pieces, words, streamed):
    async def completions(request):
        await request.read()
        if not pieces:
            await asyncio.sleep(5)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await (response.write(piece) if isinstance(piece, bytes) else asyncio.sleep(piece))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    server = await gymlet((await serve(app)).url, "m", *(OPTIONS + each for each in options))
    async with asyncio.timeout(4):
        status, headers, raw = await server.post("/v1/responses", {"input": "hi", "stream": streamed})
    assert words in raw.decode()
    if streamed and pieces:
        assert raw.endswith(b"data: [DONE]\n\n")
        assert b'"delta":"a"' in raw or b"hm" in pieces[0]
    else:
        assert (status, headers["x-gymlet-failure-class"]) == (504, "timeout")


async def test_a_connection_that_is_never_accepted_is_given_up(gymlet, free_port):
    """A listening socket whose backlog is full takes no more connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", free_port))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", free_port))
        server = await gymlet(f"http://127.0.0.1:{free_port}", "m", f"{OPTIONS}connect_timeout_s=0.3")
        status, _, answer = await ask(server)
        for filler in fillers:
            filler.close()
    assert status == 504
    assert "did not accept a connection in 0.3 s (connect_timeout_s)" in answer["error"]["message"]


async def test_the_queue_is_bounded_and_so_is_the_wait_in_it(serve, gymlet):
    async def completions(request):
        await request.read()
        await asyncio.sleep(0.6)
        return web.Response(body=WHOLE, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    options = ("num_concurrent_requests=1", "max_queued_requests=2", "queue_timeout_s=0.2")
    server = await gymlet((await serve(app)).url, "m", *(OPTIONS + each for each in options))
    answers = await asyncio.gather(*(ask(server) for _ in range(5)))
    codes = sorted((found, answer["error"]["code"] if found != 200 else "") for found, _, answer in answers)
    assert codes == [
        (200, ""),
        (429, "queue_full"),
        (429, "queue_full"),
        (504, "queue_timeout"),
        (504, "queue_timeout"),
    ]


async def test_a_client_that_leaves_gives_its_place_back(serve, gymlet):
    release, asked = asyncio.Event(), []

    async def completions(request):
        asked.append(await request.read())
        await release.wait()
        return web.Response(body=WHOLE, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    server = await gymlet((await serve(app)).url, "m", f"{OPTIONS}num_concurrent_requests=1")
    tasks = [asyncio.create_task(ask(server)) for _ in range(3)]
    await until(lambda: len(asked) == 1)
    for task in tasks[:2]:
        task.cancel()
    await until(lambda: len(asked) == 2)
    release.set()
    assert (await tasks[2])[0] == 200
    limits = (await server.get_json("/policy_model/limits"))[1]
    assert (limits["in_flight"], limits["queued"], len(asked)) == (0, 0, 2)


async def test_requests_a_minute(serve_statuses, gymlet):
    provider = await serve_statuses()
    server = await gymlet(provider.url, "m", f"{OPTIONS}requests_per_minute=2", f"{OPTIONS}queue_timeout_s=0.3")
    answers = await asyncio.gather(*(ask(server) for _ in range(3)))
    assert sorted(found for found, _, _ in answers) == [200, 200, 504]


async def test_a_proxy_and_headers_of_ones_own(serve, gymlet):
    seen = []

    async def proxy(request):
        seen.append((request.raw_path, dict(request.headers)))
        return web.Response(body=WHOLE, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy)
    url = (await serve(app)).url
    options = (
        f"proxy={url}", "proxy_user=me", "proxy_password=pw-0123456", "headers={X-Friendli-Team:blue}",
    )  # fmt: skip
    server = await gymlet("http://provider.invalid", "m", *(OPTIONS + each for each in options))
    assert (await ask(server))[0] == 200
    path, headers = seen[0]
    assert path == "http://provider.invalid/v1/chat/completions"
    assert headers["X-Friendli-Team"] == "blue"
    assert headers["Proxy-Authorization"].startswith("Basic ")


async def test_a_proxy_hears_nothing_that_is_for_the_provider(gymlet):
    heads = []

    async def handle(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.close()

    proxy = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    async with proxy:
        options = (f"proxy='{url}'", "headers={X-Team-Secret:blue}", "max_retries=0")
        server = await gymlet("https://provider.invalid", "m", *(OPTIONS + each for each in options))
        assert (await ask(server))[0] == 502
    names = {line.partition(":")[0] for line in heads[0].splitlines()[1:] if line}
    assert heads[0].startswith("connect provider.invalid:443")
    assert names <= {"host", "accept", "accept-encoding", "user-agent"}


async def test_a_call_of_a_task_that_was_cancelled_before_still_ends_in_words():
    asyncio.current_task().cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    attempt = _Attempt(0.01)
    with pytest.raises(StreamError, match="total_timeout_s"):
        await attempt.open(asyncio.sleep(30))
    assert asyncio.current_task().uncancel() == 0


PROXIES = {
    "is silent": (b"", 504, "did not accept a connection in 0.3 s (connect_timeout_s) (tried 2 times)"),
    "wants a password": (b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", 502, "its proxy answered 407: Who"),
    "passes": (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 502, "answered 503: Busy (tried 2 times)"),
}


@pytest.mark.parametrize(("says", "status", "words"), PROXIES.values(), ids=PROXIES)
async def test_a_proxy_that_does_not_let_through_is_told_from_the_provider(gymlet, says, status, words):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        await reader.read()
        writer.close()

    proxy = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    options = (f"proxy='{url}'", "connect_timeout_s=0.3", "max_retries=1", "retry_base_s=0.01")
    async with proxy:
        server = await gymlet("https://provider.invalid", "m", *(OPTIONS + each for each in options))
        async with asyncio.timeout(5):
            found, _, answer = await ask(server)
    assert found == status
    assert answer["error"]["message"].endswith(words)


def test_the_proxy_of_the_environment_is_taken_but_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    proxies = {
        url: Provider((Endpoint(url),)).proxy_for(Endpoint(url))
        for url in ("https://api.example/v1", "https://inside.example/v1", "https://127.0.0.1:1/v1")
    }
    assert list(proxies.values()) == ["http://proxy.example:3128", None, None]


ENVIRONMENTS = {
    "a URL": ("http://me:pw@proxy.example:3128", "http://me:pw@proxy.example:3128"),
    "a host and a port": ("proxy.example:3128", "http://proxy.example:3128"),
    "without a scheme": ("//proxy.example:3128", "http://proxy.example:3128"),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("given", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_proxy_of_the_environment_is_read_as_others_read_it(monkeypatch, given, expected):
    monkeypatch.setenv("https_proxy", given)
    endpoint = Endpoint("https://api.example/v1")
    assert Provider((endpoint,)).proxy_for(endpoint) == expected
    monkeypatch.setenv("https_proxy", "socks5://me:secret@proxy.example:1080")
    with pytest.raises(ConfigError, match="https_proxy is of socks5") as caught:
        Provider((endpoint,)).proxy_for(endpoint)
    assert "secret" not in str(caught.value)


async def test_an_interrupt_ends_calls_wherever_they_are(serve, gymlet):
    async def completions(request):
        body = orjson.loads(await request.read())
        if body["messages"][0]["content"] == "silent":
            await asyncio.sleep(30)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(text("so far"))
        await asyncio.sleep(30)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    server = await gymlet((await serve(app)).url, "m", f"{OPTIONS}num_concurrent_requests=3")
    bodies = [
        {"input": "silent"},
        {"input": "speaks", "stream": True},
        {"input": "speaks"},
        {"input": "waits in the queue", "stream": True},
    ]
    tasks = [asyncio.create_task(server.post("/v1/responses", body)) for body in bodies]
    await asyncio.sleep(0.5)
    server.gym.models["policy_model"].interrupt(StreamError("the server is shutting down", status=503))
    async with asyncio.timeout(3):
        answers = await asyncio.gather(*tasks)
    assert [status for status, _, _ in answers] == [503, 200, 503, 503]
    assert all(b"the server is shutting down" in raw for _, _, raw in answers)
    assert answers[1][2].endswith(b"data: [DONE]\n\n")
    assert b"so far" in answers[1][2]


async def test_the_log_of_calls_is_kept_for_who_asks(serve_statuses, gymlet):
    provider = await serve_statuses((503, {}), (503, {}))
    server = await gymlet(provider.url, "m", *QUICK)
    log = CallLog()
    CALLS.set(log)
    await server.gym.models["policy_model"].respond({"input": "hi"})
    assert log.retries == 2
    assert log.ttft_s > 0
    assert log.queued_s >= 0


def test_a_bundle_that_is_none_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "not-there.pem"):
        with pytest.raises(ConfigError, match=f"ca_bundle.*{path.name}"):
            Provider((Endpoint("https://x/v1"),), ca_bundle=str(path)).tls()


def test_a_bundle_of_ones_own_is_trusted(tmp_path):
    bundle = ssl.get_default_verify_paths().cafile
    if bundle is None:
        pytest.skip("this system has no bundle to copy")
    assert Provider((Endpoint("https://x/v1"),), ca_bundle=bundle).tls().verify_mode == ssl.CERT_REQUIRED


def test_a_provider_shows_no_secret():
    provider = Provider(
        (Endpoint("https://x/v1?api-version=2026-01-01&subscription-key=sk-query-0123", "sk-endpoint-0123"),),
        headers={"X-Api-Key": "sk-header-0123", "X-Title": "gymlet"},
        proxy_auth=("me", "pw-proxy-0123"),
    )
    assert not {"sk-endpoint-0123", "sk-header-0123", "pw-proxy-0123"} & set(repr(provider).replace("'", " ").split())
    told = "sk-endpoint-0123 sk-header-0123 pw-proxy-0123 sk-query-0123 gymlet 2026-01-01"
    assert provider.redact(told) == "**** **** **** **** gymlet 2026-01-01"


WRONG = {
    "lists of two lengths": ({"base_url": ["http://a", "http://b"], "api_key": ["k"]}, "base_url has 2, api_key has 1"),
    "weights without endpoints": ({"weights": [1, 2], "base_url": ["http://a"] * 3}, "base_url has 3, weights has 2"),
    "no endpoint": ({"base_url": []}, "an empty list names no endpoint"),
    "a URL that is none": ({"base_url": ["http://a", "b"]}, "'b' is no URL"),
    "a header of the framing": ({"headers": {"Content-Length": "3"}}, "'Content-Length' is not to be set"),
    "a header that is none": ({"headers": {"X y": "3"}}, "'X y' is no name of an HTTP header"),
    "a header with a line break": ({"headers": {"X-Y": "a\r\nb: c"}}, "no HTTP header may have"),
    "a weight of nothing": ({"weights": [0.0]}, "> 0"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration_is_told(options, words):
    given = {"base_url": "http://a", "api_key": "k", "model": "m", **options}
    _, problems = bind(ProviderOptions, given, where="policy_model")
    assert words in " ".join(map(str, problems))
