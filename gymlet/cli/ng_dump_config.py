"""ng_dump_config: shows what a configuration composes into, secrets hidden."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gymlet.cli.console import EXIT_OK, note, run_command
from gymlet.config.compose import compose, to_yaml
from gymlet.config.secrets import hide_secrets

USAGE = """
ng_dump_config "+config_paths=[A.yaml,B.yaml]" [+json=true] [+sources=true] [+key=value …]

Shows the configuration that ng_run would serve, with secrets hidden, and where each value came from.
"""


def main() -> None:
    """Entry point."""
    run_command("ng_dump_config", run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Print the tree."""
    composition = compose("ng_dump_config", arguments)
    for message in composition.notes:
        note(message)
    tree = hide_secrets({key: value for key, value in composition.tree.items() if key not in ("json", "sources")})
    shown = dict(sorted(composition.sources.items())) if composition.tree["sources"] else tree
    print(json.dumps(shown, indent=2, ensure_ascii=False) if composition.tree["json"] else to_yaml(shown).rstrip())
    return EXIT_OK
