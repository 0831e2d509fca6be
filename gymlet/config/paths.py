"""Where relative paths are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from gymlet.config.problems import Problem, near_miss

EXTRA_ROOTS_VARIABLE = "NEMO_GYM_EXTRA_ROOTS"


def package_root() -> Path:
    """The folder that holds conf, resources_servers, …: in a wheel below the package, in a clone beside it."""
    package = Path(__file__).resolve().parent.parent
    bundled = package / "bundled"
    return bundled if bundled.is_dir() else package.parent


def search_roots(cwd: Path) -> tuple[Path, ...]:
    """NEMO_GYM_EXTRA_ROOTS (separated by colons), the working directory, the installed package; first wins."""
    extra = [Path(root) for root in os.environ.get(EXTRA_ROOTS_VARIABLE, "").split(":") if root]
    return tuple(dict.fromkeys((*extra, cwd, package_root())))


def find_file(path: str, cwd: Path) -> Path | None:
    """The first existing file of that name below the roots; an absolute path is itself."""
    return next((root / path for root in search_roots(cwd) if (root / path).is_file()), None)


def missing_file(name: str, cwd: Path, key: str | None = None) -> Problem:
    """The problem with a file that is nowhere: where it was looked for, and what has a name like it."""
    looked = [name] if Path(name).is_absolute() else [str(root / name) for root in search_roots(cwd)]
    folders = [Path(place).parent for place in looked]
    kin = f"*{Path(name).suffix or '.yaml'}"
    beside = {path.name for folder in folders if folder.is_dir() for path in folder.glob(kin)}
    hint = f" {near_miss(Path(name).name, beside, instead='beside it there are')}" if beside else ""
    places = "".join(f"\n    {place}" for place in looked)
    return Problem(f"config file '{name}' is not there; is it spelled correctly?{hint}\n  looked for:{places}", key=key)
