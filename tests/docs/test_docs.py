"""What the documentation shows is what happens.

Every ``console`` block is run: the lines after ``$`` are typed into bash in a folder like a user's, the rest must be what
appears. Paths of that folder and of the package are shown as /home/me/gym and /gymlet.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gymlet.config.paths import package_root

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def blocks():
    for page in sorted(DOCS.glob("*.md")):
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            yield pytest.param(block, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("block", list(blocks()))
def test_a_console_block_shows_what_appears(block, tmp_path):
    folder = tmp_path / "gym"
    folder.mkdir()
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    for command, expected in re.findall(r"^\$ (.*?)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
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
        assert shown == expected


def test_every_page_is_reached_from_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    assert {page.name for page in DOCS.glob("*.md")} == set(re.findall(r"\(docs/([\w.]+)\)", readme))


def test_every_link_leads_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
