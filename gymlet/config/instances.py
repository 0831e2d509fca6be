"""Finds the server instances in a composed tree, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gymlet.config.problems import Problem, near_miss
from gymlet.config.schema import INSTANCE_TYPES, Instance, InstanceType, Json

DOMAINS = (
    "math", "coding", "agent", "knowledge", "instruction_following", "long_context", "safety", "games", "translation",
    "e2e", "rlhf", "other",
)  # fmt: skip
ENVIRONMENT_SERVERS = "environment_servers"
DEFAULTS: dict[InstanceType, tuple[str, ...]] = {
    "responses_api_agents": ("skip_verification", "skip_verification_reward"),
    "responses_api_models": ("cache",),
}
"""Top-level keys that stand for every instance of a kind that does not say otherwise."""

SourceOf = Callable[[str], str | None]


def find_instances(tree: Json, source_of: SourceOf) -> tuple[list[Instance], list[Problem], list[str]]:
    """The valid instances, the almost-servers (see ``almost``), and notes."""
    instances: list[Instance] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for name, block in tree.items():
        if not isinstance(block, dict):
            continue
        if ENVIRONMENT_SERVERS in block:
            notes.append(f"{name}: {ENVIRONMENT_SERVERS} are not needed here, the block is skipped")
        for kind in INSTANCE_TYPES:
            if kind in block:
                wrong = list(_almost(name, kind, block[kind], source_of))
                problems += wrong
                if not wrong:
                    instances.append(_instance(tree, name, kind, source_of))
    return instances, problems, notes


def check_references(instances: list[Instance]) -> Iterator[Problem]:
    """References to instances that are not there."""
    for instance in instances:
        for path, ref in _references(instance.options, f"{instance.name}.{instance.type}.{instance.implementation}"):
            known = [each.name for each in instances if each.type == ref["type"]]
            if ref["name"] not in known:
                hint = near_miss(str(ref["name"]), known, instead=f"the {ref['type']} there are")
                yield Problem(f"there is no {ref['type']} instance '{ref['name']}'; {hint}", path, instance.source)


def _instance(tree: Json, name: str, kind: InstanceType, source_of: SourceOf) -> Instance:
    ((implementation, options),) = tree[name][kind].items()
    where = f"{name}.{kind}.{implementation}"
    inherited = {key: tree[key] for key in DEFAULTS.get(kind, ()) if key in tree and key not in options}
    key_sources = {key: source_of(f"{where}.{key}") for key in options} | {key: source_of(key) for key in inherited}
    options = options | inherited
    return Instance(name, kind, implementation, options["entrypoint"], options, source_of(where), key_sources)


def _almost(name: str, kind: str, block: Any, source_of: SourceOf) -> Iterator[Problem]:
    where = f"{name}.{kind}"
    if not isinstance(block, dict) or len(block) != 1:
        yield Problem("must have exactly one implementation, the name of a folder", where, source_of(where))
        return
    ((implementation, options),) = block.items()
    where = f"{where}.{implementation}"
    if not isinstance(options, dict):
        yield Problem("must be a mapping of options, with an entrypoint", where, source_of(where))
        return
    if not isinstance(options.get("entrypoint"), str):
        yield Problem(
            "is required: the file that defines the server, e.g. app.py", f"{where}.entrypoint", source_of(where)
        )
    domain = options.get("domain")
    if domain is not None and domain not in DOMAINS:
        yield Problem(
            f"'{domain}' is no domain; {near_miss(str(domain), DOMAINS)}", f"{where}.domain", source_of(where)
        )


def _references(node: Any, at: str) -> Iterator[tuple[str, Json]]:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            yield from _references(entry, f"{at}[{index}]")
    elif isinstance(node, dict):
        if node.keys() == {"type", "name"} and node["type"] in INSTANCE_TYPES:
            yield at, node
            return
        for key, value in node.items():
            yield from _references(value, f"{at}.{key}")
