"""What the documentation shows is what happens.

Every ``console`` block is run: the lines after ``$`` are typed into bash in a folder like a user's, the rest must be what
appears. Paths of that folder and of the package are shown as /home/me/gym and /gymlet; a server is where the pages say,
and its ids and times differ.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymlet.config.paths import package_root

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


SERVER, PROVIDER = "http://127.0.0.1:11000", "http://127.0.0.1:9000"
MINTED = re.compile(r"(?<=_)[0-9a-f]{32}|(?<=_at\":)\d+")


@pytest.fixture(scope="module")
def provider():
    """Where the scripted provider is."""
    port = _free_port()
    with _running(port, sys.executable, "scripts/scripted_provider.py", "--port", str(port)) as url:
        yield url


@pytest.fixture(scope="module")
def server(provider):
    """Where the server is: one in front of the scripted provider."""
    port, model = _free_port(), "policy_model.responses_api_models.inference_provider"
    arguments = (
        "+config_paths=[responses_api_models/inference_provider/configs/fireworks.yaml]",
        f"++{model}.base_url={provider}/v1",
        f"++{model}.model=reasoning-tool-call",
        "++policy_api_key=none",
        f"++head_server.port={port}",
    )
    with _running(port, Path(sys.executable).with_name("ng_run"), *arguments) as url:
        yield url


@contextlib.contextmanager
def _running(port, *command):
    process = subprocess.Popen(command, cwd=DOCS.parent, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def _wait_for(port):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on {port}")


def blocks():
    for page in sorted(DOCS.glob("*.md")):
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            yield pytest.param(block, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("block", list(blocks()))
def test_a_console_block_shows_what_appears(block, tmp_path, request):
    folder = tmp_path / "gym"
    folder.mkdir()
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    for command, expected in re.findall(r"^\$ (.*?)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        for url, fixture in ((SERVER, "server"), (PROVIDER, "provider")):
            if url in command:
                command = command.replace(url, request.getfixturevalue(fixture))  # noqa: PLW2901
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1; {command}"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        shown = done.stdout.replace(str(folder), "/home/me/gym").replace(str(package_root()), "/gymlet")
        assert MINTED.sub("…", shown) == MINTED.sub("…", expected)


def test_every_page_is_reached_from_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    assert {page.name for page in DOCS.glob("*.md")} == set(re.findall(r"\(docs/([\w.]+)\)", readme))


def test_every_link_leads_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
