"""What an id says about the worker that made it."""

import pytest
from aiohttp import web

from gymlet.serve.failures import json_response
from gymlet.serve.fellows import FellowError, Fellows
from gymlet.serve.workers import WorkerContext

REST = "f" * 30
IDS = {
    "another's response": (f"resp_02{REST}", 2),
    "another's session": (f"00{REST}", 0),
    "my own": (f"resp_01{REST}", None),
    "nobody's": (f"resp_03{REST}", None),
    "of a provider": ("call_abc", None),
    "too long": (f"resp_002{REST}", None),
    "a path": (f"../02{REST}", None),
    "none": ("", None),
}


@pytest.mark.parametrize(("name", "maker"), IDS.values(), ids=IDS)
async def test_an_id_names_its_maker(tmp_path, name, maker):
    assert Fellows(WorkerContext(1, 3, tmp_path)).maker(name) == maker


async def test_an_id_is_known_to_all(tmp_path):
    makers = [Fellows(WorkerContext(index, 256, tmp_path)) for index in (0, 7, 255)]
    for prefix in ("resp_", "msg_", ""):
        made = [maker.new_id(prefix) for maker in makers]
        assert [[fellow.maker(name) for name in made] for fellow in makers] == [
            [None, 7, 255], [0, None, 255], [0, 7, None]
        ]  # fmt: skip
        assert {len(name) for name in made} == {len(prefix) + 32}


async def test_a_worker_that_is_gone_is_named(tmp_path):
    fellows = Fellows(WorkerContext(0, 2, tmp_path))
    with pytest.raises(FellowError, match="worker 1 of the server"):
        await fellows.ask(1, "GET", "/stored/x")
    await fellows.close()


async def test_a_worker_that_stops_knows_nothing_any_more(tmp_path):
    async def refuse(_request):
        return json_response({"error": {"message": "the server stops"}}, status=503)

    fellows = Fellows(WorkerContext(0, 2, tmp_path))
    app = web.Application()
    app.router.add_get("/stored/x", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(fellows.context.socket_of(1))).start()
    with pytest.raises(FellowError, match="worker 1 of the server"):
        await fellows.get(1, "/stored/x")
    await fellows.close()
    await runner.cleanup()
