"""A noisy server and a noisy run, and everything that they wrote searched for the keys."""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from cli.asking import STREAM, WHOLE, ask
from cli.conftest import BIN, CONFIGS
from wire.pipeline import text

KEYS = {
    "provider": "sk-provider-0123456789abcdef",
    "first": "sk-first-door-0123456789abcdef",
    "second": "sk-second-door-0123456789abcdef",
    "elsewhere": "sk-elsewhere-0123456789abcdef",
}
SETTINGS = f"""
policy_api_key: {KEYS["provider"]}
policy_model_name: m
policy_base_url: $URL/v1
head_server: {{api_key: [{KEYS["first"]}, {KEYS["second"]}]}}
headers: {{Authorization: 'Bearer {KEYS["elsewhere"]}'}}
"""
FAR = f"""
far:
  resources_servers:
    mcqa: {{entrypoint: app.py, base_url: 'http://127.0.0.1:1/mcqa', api_key: {KEYS["elsewhere"]}}}
"""
ALL = f"{CONFIGS},far.yaml"
ROWS = [
    {"responses_create_params": {"input": f"{number}?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    for number in range(8)
]


async def tell_tale(request):
    """A provider that repeats the key wherever it can."""
    body = await request.read()
    key = request.headers["Authorization"]
    error = {"error": {"message": f"{key} is bad", "code": key, "type": key, "param": key}}
    if b'"1?"' in body or b'"2?"' in body or b"refuse" in body:
        return web.json_response(error, status=401, headers={"x-request-id": key.split()[1], "Retry-After": "1"})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": key.split()[1]})
    await response.prepare(request)
    await response.write(text("hi") + b"data: " + orjson.dumps(error) + b"\n\n")
    return response


def odd_requests(key):
    """Heads that hold a key where none belongs."""
    body = orjson.dumps({key: 1, "input": [{"type": key}], "model": key, "metadata": {"key": key}})
    length = f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    post = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    known = f"x-api-key: {KEYS['first']}\r\n"
    return [
        post + f"Authorization: Bearer {key}\r\n".encode() + length,
        post + f"Authorization: Bearer {key}x\r\n".encode() + length,
        post + f"{known}x-request-id: {key}\r\n".encode() + length,
        post + f"{known}Origin: http://{key}\r\n".encode() + length,
        post + f"Authorization: Bearer\x00{key}\r\n".encode() + length,
        post + f"{key}\r\n".encode() + length,
        post + f"Transfer-Encoding: {key}\r\n\r\n".encode(),
        f"GET /{key}?key={key} HTTP/1.1\r\nHost: {key}\r\nConnection: close\r\n{known}\r\n".encode(),
        f"GET http:///{key} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"{key}\r\n\r\n".encode(),
    ]


async def shout(url, raw):
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(raw)
    await asyncio.wait_for(reader.read(), 10)
    writer.close()


def command_lines(pid):
    """Of a process and those that it started."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return "".join(Path(f"/proc/{each}/cmdline").read_text() for each in (pid, *tasks))


async def run(folder, name, *arguments):
    """A command; what it wrote."""
    process = await asyncio.create_subprocess_exec(
        BIN / name, *arguments, cwd=folder, env=os.environ | {"GYMLET_LOG_LEVEL": "DEBUG"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out.decode()


async def test_no_key_is_written_anywhere(serve, start, client, tmp_path):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", tell_tale)
    provider = await serve(app)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in ROWS))
    (tmp_path / "far.yaml").write_text(FAR)
    settings, noise = SETTINGS.replace("$URL", provider.url), {"GYMLET_LOG_LEVEL": "DEBUG"}
    process, url, told = await start(provider.url, "num_workers=2", configs=ALL, env=noise, settings=settings)
    written = [told, command_lines(process.pid)]
    for raw in [each for key in KEYS.values() for each in odd_requests(key)]:
        await shout(url, raw)
    client.headers["Authorization"] = f"Bearer {KEYS['second']}"
    refused = {"input": "refuse"}
    for body in (WHOLE, STREAM, refused, refused | STREAM | refused, {"input": 3}):
        for path in ("/v1/responses", "/v1/chat/completions", "/mcqa/verify", "/nowhere"):
            _, headers, raw = await ask(client, url, body | {"messages": []}, path)
            written += [str(dict(headers)), raw.decode()]
    for path in ("/global_config_dict_yaml", "/server_instances", "/v1/models"):
        written.append((await ask(client, url, None, path, "GET"))[2].decode())
    collect = ("+agent_name=mcqa_simple_agent", "+input_jsonl_fpath=rows.jsonl")
    port = f"+head_server.port={url.rpartition(':')[2]}"
    configs = f"+config_paths=[{ALL}]"
    written += [
        await run(tmp_path, "ng_collect_rollouts", *collect, "+output_jsonl_fpath=there.jsonl", port),
        await run(tmp_path, "ng_collect_rollouts", *collect, "+output_jsonl_fpath=here.jsonl", configs),
        await run(tmp_path, "ng_dump_config", configs),
        await run(tmp_path, "ng_dump_config", configs, "+json=true"),
        await run(tmp_path, "ng_dump_config", configs, "+sources=true"),
    ]
    process.terminate()
    out, err = await process.communicate()
    written += [out.decode(), err.decode()]
    assert "8 failed" in written[-7], "the runs were noisy"
    assert "8 failed" in written[-6]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert len(files) > 4
    written += [path.read_bytes().decode("utf-8", "replace") for path in files]
    for name, key in KEYS.items():
        assert not [text for text in written if key in text], name
