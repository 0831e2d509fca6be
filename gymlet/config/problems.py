"""Mistakes in a configuration, gathered so that a user sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: what is wrong and what to do; ``key`` is its dotted path, ``source`` the file it stands in."""

    message: str
    key: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.source, self.key) if part)
        return f"{place}: {self.message}" if place else self.message


class ConfigError(Exception):
    """A configuration that cannot be used. ``str(error)`` is the whole message for the terminal."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def near_miss(name: str, known: Iterable[str], *, instead: str = "there are") -> str:
    """ "did you mean 'x'?" where something is close, otherwise what there is."""
    choices = sorted(set(known))
    near = get_close_matches(name, choices, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{instead}: {', '.join(choices) or 'none'}"
