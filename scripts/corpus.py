"""Runs recorded replies of providers through the real server, and compares what comes out with what is expected.

    make corpus CORPUS=<folder>        or: python scripts/corpus.py <folder> [--seed 1] [--only groq/]

The folder's format is described in docs/corpus.md. A provider on a real socket replays each body: streams in one piece,
cut at random, and in the pieces that were recorded; gymlet is asked for a streamed and for a whole reply. All of them
must be what the case expects, and the same. Cases held to be wrong are listed, with the reason, in
scripts/corpus_exceptions.yaml: they run as well, and it is an error if one of them agrees.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from aiohttp import web

from gymlet.config.compose import compose
from gymlet.serve.launch import Gym, make_app
from gymlet.serve.plugins import load

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = Path(__file__).with_name("corpus_exceptions.yaml")
MAX_PIECE_BYTES = 48
INSTANCE = """
{name}:
  responses_api_models:
    inference_provider:
      entrypoint: app.py
      base_url: {url}/v1
      api_key: sk-corpus-of-recorded-replies
      model: corpus
      uses_reasoning_parser: true
      max_retries: 0
      starts_in_reasoning: {patterns}
"""
MINTED = re.compile(rb'"(?:resp|msg|fc|rs|call)_[0-9a-f]{32}"')
TIMES = re.compile(rb'"(?:created_at|completed_at)":\d+')


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded body, with what is known of it."""

    name: str
    body: bytes
    meta: Json
    sizes: list[int]

    @property
    def expected(self) -> Json:
        """What must come out; a case joins all choices where several were asked for, but only the first counts."""
        expected = dict(self.meta["expected"])
        if ((self.meta.get("request") or {}).get("n") or 1) > 1 and self.streamed:
            expected["answer_text_stripped"] = self._first_choice().strip()
        return expected

    def _first_choice(self) -> str:
        chunks = [orjson.loads(line[6:]) for line in self.body.splitlines() if line.startswith(b"data: {")]
        deltas = [each["delta"] for chunk in chunks for each in chunk.get("choices") or () if not each.get("index")]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def streamed(self) -> bool:
        """Whether the body is a stream."""
        return str(self.meta["file"]).endswith(".sse")

    def pieces(self, cut: str) -> Iterator[bytes]:
        """The body as the provider sends it."""
        sizes = {"whole": [], "recorded": self.sizes}.get(cut)
        chance = random.Random(f"{self.name} {cut}")  # noqa: S311  repeatable, not secret
        start = 0
        while start < len(self.body):
            size = chance.randint(1, MAX_PIECE_BYTES) if sizes is None else (sizes.pop(0) if sizes else len(self.body))
            yield self.body[start : start + size]
            start += size


def read_cases(folder: Path, only: str) -> list[Case]:
    """All cases below the folder whose name begins with ``only``."""
    cases = []
    for path in sorted(folder.glob("*/*.meta.json")):
        meta = orjson.loads(path.read_bytes())
        base = path.name.removesuffix(".meta.json")
        chunks = path.with_name(f"{base}.chunks.json")
        sizes = orjson.loads(chunks.read_bytes()) if chunks.exists() else []
        name = f"{path.parent.name}/{base}"
        if name.startswith(only):
            sizes = sizes if isinstance(sizes, list) else sizes.get("sizes", [])
            cases.append(Case(name, path.with_name(meta["file"]).read_bytes(), meta, sizes))
    return cases


async def main() -> int:
    """Run everything; 1 if anything disagrees."""
    given = _arguments()
    cases = read_cases(Path(given.folder), given.only)
    if not cases:
        print(f"there are no cases (*/*.meta.json) in {given.folder}", file=sys.stderr)
        return 2
    exceptions = yaml.safe_load(EXCEPTIONS.read_text()) or {}
    verdicts: dict[str, str] = {}
    async with _servers({case.name: case for case in cases}) as (url, client):
        for case in cases:
            verdicts[case.name] = await _verdict(case, client, url, given.seed)
    return _report(verdicts, exceptions)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    return parser.parse_args()


def _report(verdicts: dict[str, str], exceptions: dict[str, str]) -> int:
    passed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    excepted = []
    for name, verdict in verdicts.items():
        provider, why = name.split("/")[0], verdict
        if name in exceptions:
            excepted.append(name)
            why = "" if verdict else "agrees, but is listed as an exception"
        if why:
            print(f"FAILED {name}: {why}")
        (failed if why else passed)[provider] += 1
    for provider in sorted({name.split("/")[0] for name in verdicts}):
        print(f"{provider:20} {passed[provider]:4} passed {failed[provider]:4} failed")
    for name in excepted:
        print(f"exception {name}: {exceptions[name]}")
    print(f"{passed.total()} of {len(verdicts)} passed, {len(excepted)} of them argued exceptions")
    return 1 if failed else 0


@asynccontextmanager
async def _servers(cases: dict[str, Case]) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The replaying provider, and gymlet before it."""

    async def replay(request: web.Request) -> web.StreamResponse:
        name, _, cut = str((await request.json())["user"]).partition(" ")
        case = cases[name]
        kind = "text/event-stream" if case.streamed else "application/json"
        headers = {"Content-Type": case.meta["response_headers"].get("content-type") or kind}
        response = web.StreamResponse(status=case.meta["http_status"] or 200, headers=headers)
        await response.prepare(request)
        for piece in case.pieces(cut):
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", replay)
    async with _serving(app) as provider, aiohttp.ClientSession() as client:
        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch) / "corpus.yaml"
            plain = INSTANCE.format(name="plain", url=provider, patterns="[]")
            config.write_text(plain + INSTANCE.format(name="inside", url=provider, patterns="['*']"))
            composition = compose("ng_run", [f"+config_paths=[{config}]"], cwd=Path(scratch))
            plugins, problems = load(composition.instances, [ROOT])
            assert not problems, problems  # noqa: S101  our own config
            async with Gym(plugins).running() as gym, _serving(make_app(gym, url="", config_yaml="")) as url:
                yield url, client


@asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _verdict(case: Case, client: aiohttp.ClientSession, url: str, seed: int) -> str:
    """Why the case disagrees; "" if it does not."""
    instance = "inside" if case.expected.get("requires_config") else "plain"
    cuts = ["whole", f"random {seed}", f"random {seed + 1}", *(["recorded"] if case.sizes else [])]
    seen: list[Json] = []
    for stream in (True, False):
        for cut in cuts:
            body: Json = {"input": "x", "user": f"{case.name} {cut}", "stream": stream}
            if (case.meta.get("request") or {}).get("response_format"):
                body["text"] = {"format": {"type": "json_object"}}
            async with client.post(f"{url}/{instance}/v1/responses", json=body) as response:
                raw = await response.read()
                found = _result(response.status, raw)
            why = _disagreement(case.expected, found)
            if why:
                return f"{'streamed' if stream else 'whole'}, {cut}: {why}"
            if found.get("status") in ("completed", "incomplete"):
                seen.append(found)
    same = {TIMES.sub(b"", MINTED.sub(b"", orjson.dumps(each))) for each in seen}
    return "" if len(same) <= 1 else "cut differently, or streamed and whole, it is not the same"


def _result(status: int, raw: bytes) -> Json:
    """The terminal response, or ``{"http": status, "error": …}``."""
    if raw.startswith(b"event:"):
        last = raw.rstrip().split(b"\n\n")[-2].split(b"data: ", 1)[1]
        response: Json = orjson.loads(last)["response"]
        return response
    payload: Json = orjson.loads(raw)
    return payload if status == 200 else {"http": status, "error": payload["error"], "status": "failed"}


def _disagreement(expected: Json, found: Json) -> str:
    if expected.get("is_error"):
        return _wrong_error(expected, found)
    answers = [expected]
    if expected.get("ambiguous"):
        answers += [{**expected, **_stripped(other)} for other in expected.get("alternatives", ())]
    reasons = [_wrong_answer(answer, found) for answer in answers]
    return "" if "" in reasons else reasons[0]


def _stripped(answer: Json) -> Json:
    texts = {f"{key}_stripped": answer[key].strip() for key in ("reasoning_text", "answer_text") if key in answer}
    return {**answer, **texts}


def _wrong_error(expected: Json, found: Json) -> str:
    if found.get("http") not in (expected["http_status"], 400):
        return f"status {found.get('http')}, expected {expected['http_status']}"
    message = found["error"]["message"]
    missing = [words for words in _words(expected["message"]) if " ".join(words.split())[:200] not in message]
    return f"the message {message!r} has not the provider's words {missing}" if missing else ""


def _words(message: object) -> list[str]:
    """The sentences in an expected message; where it is a structure written as Python, those in it."""
    if isinstance(message, str):
        try:
            structure = ast.literal_eval(message)
        except (ValueError, SyntaxError):
            return [message]
        return _words(structure) if isinstance(structure, dict | list) else [message]
    if isinstance(message, list):
        return [words for each in message for words in _words(each)]
    holder = message if isinstance(message, dict) else {}
    return [words for key in ("error", "message", "detail", "msg") if holder.get(key) for words in _words(holder[key])]


def _wrong_answer(expected: Json, found: Json) -> str:
    status = expected.get("suggested_responses_status") or "completed"
    wanted = {"failed_or_truncated": ("failed", "incomplete")}.get(status, (status.partition(":")[0],))
    if found["status"] not in wanted:
        return f"status {found['status']} ({(found.get('error') or {}).get('message')}), expected {status}"
    if "http" in found:
        return ""
    reason = (found.get("incomplete_details") or {}).get("reason", "")
    if status.startswith("incomplete:") and reason != status.partition(":")[2]:
        return f"incomplete because of {reason}, expected {status}"
    pairs = [
        ("answer", _text(found, "message", "content"), expected["answer_text_stripped"]),
        ("reasoning", _text(found, "reasoning", "summary"), expected["reasoning_text_stripped"]),
        ("calls", _calls(found["output"]), _calls(expected.get("tool_calls") or [])),
    ]
    for what, is_, should in pairs:
        if is_ != should:
            return f"the {what} is {is_!r:.300}, expected {should!r:.300}"
    return ""


def _text(response: Json, kind: str, container: str) -> str:
    items = [item for item in response["output"] if item["type"] == kind]
    return "".join(part.get("text", "") for item in items for part in item[container]).strip()


def _calls(items: list[Json]) -> list[tuple[str, object]]:
    return [(item["name"], _arguments_of(item["arguments"])) for item in items if item.get("type") in CALL_TYPES]


CALL_TYPES = (None, "function", "function_call")
"""A case's calls may have no type."""


def _arguments_of(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
