"""Writes docs/providers.md from the configs.    make providers        or: python scripts/providers_page.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "responses_api_models" / "inference_provider" / "configs"
PAGE = ROOT / "docs" / "providers.md"
START, END = "<!-- the table: written by make providers -->\n", "<!-- its end -->\n"
COMMON = {"entrypoint", "base_url", "api_key", "model", "uses_reasoning_parser"}


def table() -> str:
    """One row per config: where it calls, and each key in which it differs from the default."""
    rows = ["| config | base_url | differs in |", "|---|---|---|"]
    for path in sorted(CONFIGS.glob("*.yaml")):
        options = yaml.safe_load(path.read_text())["policy_model"]["responses_api_models"]["inference_provider"]
        differs = [f"`{key}: {_shown(value)}`" for key, value in options.items() if key not in COMMON]
        rows.append(f"| `{path.name}` | `{options['base_url']}` | {'; '.join(differs) or 'nothing'} |")
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """The page with its table as the configs have it now."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + "\n" + table() + "\n" + END + after


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("\n...\n").strip()


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
