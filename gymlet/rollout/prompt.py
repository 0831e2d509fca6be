"""Inputs made from templates: a prompt_config's ``user`` and, optionally, ``system``, filled with a row's fields."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from gymlet.rollout.places import RowError

Json = dict[str, Any]
ROLES = ("system", "user")


def has_input(row: Json) -> bool:
    """Whether a row asks something already."""
    return bool((row.get("responses_create_params") or {}).get("input"))


def fill_prompt(prompt: Mapping[str, str], row: Json, place: str) -> None:
    """Put the input into a row: ``{field}`` is the row's field, ``{{`` is a brace.

    Raises RowError, with ``place``, for a template that asks for a field that is not there.
    """
    messages = [{"role": role, "content": _fill(prompt[role], row, place)} for role in ROLES if prompt.get(role)]
    row["responses_create_params"] = {**(row.get("responses_create_params") or {}), "input": messages}


def _fill(template: str, row: Json, place: str) -> str:
    try:
        return string.Formatter().vformat(template, (), row)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        wrong = f"needs {error}" if isinstance(error, KeyError) else f"cannot be filled ({error})"
        raise RowError(f"{place}: the prompt {wrong}, and the row's fields are: {', '.join(sorted(row))}") from None
