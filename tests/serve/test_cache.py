"""The cache of model calls: what is the same call, what is kept, who may share it."""

import asyncio
import signal
import sqlite3
import subprocess
import sys

import orjson
import pytest

from gymlet.config.problems import ConfigError
from gymlet.config.schema import ModelOptions
from gymlet.serve.cache import SqliteCache, call_digest, nth_digest

REQUEST = {"messages": [{"role": "user", "content": "2 + 2?"}], "temperature": 0.7}


def reply(text="4", finish="stop"):
    return orjson.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})


def key(number=0):
    return call_digest("p/m", REQUEST, number)


@pytest.fixture
async def open_cache(tmp_path):
    """Open the test's cache, as often as one likes: ``await open_cache(max_bytes=100)``."""
    opened = []

    async def start(**options):
        cache = SqliteCache(tmp_path / "deep" / "cache.db", **options)
        await cache.start()
        opened.append(cache)
        return cache

    yield start
    for cache in opened:
        await cache.stop()


OTHERS = {
    "another provider": ("q/m", REQUEST, 0),
    "another model": ("p/n", REQUEST, 0),
    "another temperature": ("p/m", REQUEST | {"temperature": 0.8}, 0),
    "another message": ("p/m", REQUEST | {"messages": []}, 0),
    "one more parameter": ("p/m", REQUEST | {"seed": 1}, 0),
    "another repeat": ("p/m", REQUEST, 1),
    "no repeat": ("p/m", REQUEST, None),
    "a repeat of another kind": ("p/m", REQUEST, "0"),
    "a repeat that is not UTF-8": ("p/m", REQUEST, "\udcff"),
}


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
def test_another_call_has_another_key(call):
    assert call_digest(*call) != key()


def test_the_second_time_is_no_name_of_a_repeat():
    second = nth_digest(call_digest("p/m", REQUEST, 0), 2)
    assert second not in {call_digest("p/m", REQUEST, repeat) for repeat in (0, 2, "0, time 2")}


SAME = {
    "in another order": dict(reversed(REQUEST.items())),
    "streamed": REQUEST | {"stream": True, "stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("request_", SAME.values(), ids=SAME)
def test_the_same_call_has_the_same_key(request_):
    assert call_digest("p/m", request_, 0) == key()


async def test_what_was_put_is_got_again_and_later(open_cache):
    cache = await open_cache()
    assert await cache.get(key()) is None
    await cache.put(key(), reply())
    assert await cache.get(key()) == reply()
    assert (cache.hits, cache.misses) == (1, 1)
    await cache.stop()
    assert await (await open_cache()).get(key()) == reply()


async def test_the_first_reply_stays(open_cache):
    cache = await open_cache()
    await cache.put(key(), reply("first"))
    await cache.put(key(), reply("second"))
    assert await cache.get(key()) == reply("first")


async def test_the_oldest_go_when_there_are_too_many(open_cache):
    cache = await open_cache(max_bytes=10 * len(reply("x" * 100)))
    for number in range(50):
        await cache.put(key(number), reply("x" * 100))
    there = [number for number in range(50) if await cache.get(key(number))]
    assert there == list(range(40, 50))


async def test_a_reply_larger_than_all_there_may_be_is_not_kept(open_cache):
    cache = await open_cache(max_bytes=10)
    await cache.put(key(), reply())
    assert await cache.get(key()) is None


WRITER = """
import asyncio, sys
from pathlib import Path
from gymlet.serve.cache import SqliteCache, call_digest

async def main(path, start):
    cache = SqliteCache(Path(path))
    await cache.start()
    for number in range(start, start + 300):
        body = b'{"choices": [{"finish_reason": "stop", "n": %d}]}' % number
        await cache.put(call_digest("p/m", {}, number), body)
        print(number, flush=True)
    await cache.stop()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def writer(path, start):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, str(start)], stdout=subprocess.PIPE)


async def test_processes_share_it(open_cache):
    cache = await open_cache()
    writers = [writer(cache.path, start) for start in (0, 150, 300, 450)]
    for process in writers:
        await asyncio.to_thread(process.communicate)
    assert [process.returncode for process in writers] == [0] * 4
    for number in range(750):
        body = await cache.get(call_digest("p/m", {}, number))
        assert orjson.loads(body)["choices"][0]["n"] == number


async def test_a_process_that_is_killed_loses_nothing_it_had_put(open_cache):
    cache = await open_cache()
    process = writer(cache.path, 0)
    put = [await asyncio.to_thread(process.stdout.readline) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    put += (await asyncio.to_thread(process.communicate))[0].splitlines()
    for number in map(int, put):
        assert await cache.get(call_digest("p/m", {}, number)) is not None
    await cache.put(key(), reply())
    assert await cache.get(key()) == reply()


async def test_the_loop_does_not_wait_for_the_file(open_cache):
    cache = await open_cache()
    await cache.put(key(), reply())
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    putting = asyncio.create_task(cache.put(key(1), reply()))
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert not putting.done()
    other.execute("COMMIT")
    other.close()
    await putting
    assert await cache.get(key(1)) == reply()


async def test_a_file_that_breaks_costs_calls_not_rollouts(open_cache, caplog):
    cache = await open_cache()
    await cache.put(key(), reply())
    other = sqlite3.connect(cache.path)
    other.execute("DROP TABLE replies")
    other.commit()
    other.close()
    assert await cache.get(key()) is None
    await cache.put(key(), reply())
    assert await cache.get(key()) is None
    assert len([record for record in caplog.records if "is used no more" in record.message]) == 1


async def test_nothing_of_the_request_is_in_the_file(open_cache):
    cache = await open_cache()
    secret = {"messages": [{"role": "user", "content": "a private question"}], "user": "sk-very-secret"}
    await cache.put(call_digest("p/v1?key=sk-very-secret", secret, 0), reply())
    await cache.stop()
    content = b"".join(path.read_bytes() for path in cache.path.parent.iterdir())
    assert b"secret" not in content
    assert b"private" not in content
    assert b"p/v1" not in content


async def test_a_new_file_may_be_opened_while_another_opens_it(open_cache, tmp_path):
    """SQLite refuses who changes the file's mode while another writes, and does not wait."""
    path = tmp_path / "deep" / "cache.db"
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opening = asyncio.create_task(open_cache())
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert not opening.done()
    other.execute("COMMIT")
    other.close()
    cache = await opening
    await cache.put(key(), reply())
    assert await cache.get(key()) == reply()


async def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "cache.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    cache = SqliteCache(path)
    with pytest.raises(ConfigError, match="a database of something else"):
        await cache.start()
    await cache.stop()
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", ["~no-such-user/cache.db", "cache\0.db", ".", "/dev/null/cache.db"], ids=ascii)
async def test_a_path_that_is_none_is_told(path):
    cache = SqliteCache.of(ModelOptions(model="m", cache=f"sqlite:{path}"))
    with pytest.raises(ConfigError, match="cannot be used"):
        await cache.start()
    await cache.stop()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at", "newer"], ids=str)
async def test_a_file_that_is_no_cache_is_told(tmp_path, content):
    path = tmp_path / "cache.db"
    if content == "newer":
        file = sqlite3.connect(path)
        file.execute("PRAGMA user_version = 7")
        file.close()
    else:
        path.write_bytes(content)
    cache = SqliteCache(path)
    with pytest.raises(ConfigError, match=r"cache\.db cannot be used: (file is not|it is of version 7)"):
        await cache.start()
    await cache.stop()
