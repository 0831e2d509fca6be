"""Composes a configuration: conf/<command>.yaml < the files of config_paths < env.yaml < the command line.

Hydra reads the primary config of the command and applies the command line to what the files and env.yaml merged into;
the files and their ``config_paths`` are ours. Then directives are carried out, interpolations resolved, and instances
and references checked. Every mistake found on the way is told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gymlet.config import directives
from gymlet.config.files import (
    ConfigFiles,
    Layer,
    leaves,
    merge_layers,
    not_a_list,
    read_yaml,
    sources,
)
from gymlet.config.instances import check_references, find_instances
from gymlet.config.paths import find_file, missing_file, package_root
from gymlet.config.problems import ConfigError, Problem, near_miss
from gymlet.config.schema import HeadServer, Instance, bind
from gymlet.config.secrets import names_secret

ENV_FILE = "env.yaml"
COMMAND_LINE = "the command line"
NO_MODEL: dict[str, Any] = {
    "policy_model": {
        "responses_api_models": {
            "inference_provider": {
                "entrypoint": "app.py",
                "base_url": "http://model.invalid/v1",
                "api_key": "",
                "model": "none",
            }
        }
    }
}
"""Stands where agents refer to a model, for commands that ask none."""

_HYDRA_VERSION = "1.3"
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete) '([^']+)'|Could not delete from config\. '([^']+)'")
_UNRESOLVED = re.compile(r"Interpolation key '([^']+)' not found")


@dataclass(frozen=True, slots=True)
class Composition:
    """A whole configuration, checked.

    ``tree`` is plain and resolved; ``config_paths`` lists the roots first, then what they pulled in; ``layers`` names
    the sources in merge order; ``sources`` says for each dotted leaf which of them set it; ``notes`` are for the user.
    """

    tree: dict[str, Any]
    instances: tuple[Instance, ...]
    head_server: HeadServer
    config_paths: tuple[str, ...]
    layers: tuple[str, ...]
    sources: Mapping[str, str]
    notes: tuple[str, ...]


def compose(
    command: str, overrides: Sequence[str], *, cwd: Path | None = None, without_model: bool = False
) -> Composition:
    """The configuration of ``command``. Raises ConfigError with every mistake.

    ``without_model``: nothing will be asked, and ``policy_model`` need not be configured.
    """
    cwd = cwd or Path.cwd()
    parsed = _parse(overrides)
    env_path = cwd / ENV_FILE
    env = read_yaml(env_path, str(env_path)) if env_path.is_file() else {}
    files = ConfigFiles(cwd)
    files.load(_config_paths(parsed, env, str(env_path)))
    if files.problems:
        raise ConfigError(files.problems)
    layers = [Layer(f"conf/{command}.yaml", _primary(command)), *files.layers, Layer(str(env_path), env)]
    merged = (NO_MODEL if without_model else {}) | merge_layers(layers) | {"config_paths": files.names}
    tree = _override(command, merged, parsed)
    layers.append(Layer(COMMAND_LINE, _command_line(parsed)))
    return _check(tree, files, layers, parsed)


def _check(tree: dict[str, Any], files: ConfigFiles, layers: list[Layer], parsed: list[Override]) -> Composition:
    tree, problems = directives.apply(tree)
    origin = sources(layers)
    resolved, unset = _resolve(tree, origin)
    if problems or unset:
        raise ConfigError([*problems, *unset])
    instances, almost, notes = find_instances(resolved, lambda path: _source_of(path, origin))
    if almost and resolved.get("error_on_almost_servers", True):
        problems.append(Problem(_almost_servers(almost, "error_on_almost_servers=false goes on without them")))
    elif almost:
        notes.append(_almost_servers(almost, "they are left out"))
    problems += check_references(instances)
    head, wrong = bind(HeadServer, resolved.get("head_server") or {}, where="head_server")
    if problems or wrong or head is None:
        raise ConfigError([*problems, *wrong])
    return Composition(
        tree=resolved,
        instances=tuple(instances),
        head_server=head,
        config_paths=tuple(files.names),
        layers=tuple(layer.label for layer in layers if layer.tree),
        sources=origin,
        notes=(*files.notes, *notes, *_visible_secrets(parsed)),
    )


def require_instances(composition: Composition) -> None:
    """Raise ConfigError where nothing is to be served."""
    if not any(instance.source for instance in composition.instances):
        example = "ng_run '+config_paths=[resources_servers/mcqa/configs/mcqa.yaml,…]'"
        raise ConfigError([Problem(f"no server instance is configured; name config files, e.g. {example}")])


def read_mapping(name: str, key: str) -> dict[str, Any]:
    """A YAML file that the configuration names under ``key``. Raises ConfigError."""
    path = find_file(name, Path.cwd())
    if path is None:
        raise ConfigError([missing_file(name, Path.cwd(), key)])
    return read_yaml(path, name)


def to_yaml(tree: dict[str, Any]) -> str:
    """The tree as YAML, keys in their order."""
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text


def _parse(overrides: Sequence[str]) -> list[Override]:
    """The command line as Hydra reads it; ``+key`` adds or replaces, as NeMo Gym's users write it."""
    problems: list[Problem] = []
    parsed: list[Override] = []
    parser = OverridesParser.create()
    for text in overrides:
        forced = f"+{text}" if text.startswith("+") and not text.startswith("++") else text
        try:
            parsed.append(parser.parse_override(forced))
        except HydraException as error:
            problems.append(
                Problem(f"'{text}' cannot be read: {_first_line(error)}{_syntax_hint(text)}", source=COMMAND_LINE)
            )
    if problems:
        raise ConfigError(problems)
    return parsed


def _syntax_hint(text: str) -> str:
    if not re.match(r"[+~]*[\w.]+(=|$)", text.lstrip()):
        return "; an override is written key=value, +key=value or ~key"
    return "; quote the whole argument, and values with spaces or special signs once more: 'key=\"a, b\"'"


def _config_paths(parsed: list[Override], env: dict[str, Any], env_label: str) -> list[str]:
    value, source = env.get("config_paths") or [], env_label
    for override in parsed:
        if override.key_or_group == "config_paths":
            value, source = override.value(), COMMAND_LINE
    if not isinstance(value, list):
        raise ConfigError([not_a_list(value, source)])
    return [str(name) for name in value]


def _primary(command: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(package_root() / "conf"), version_base=_HYDRA_VERSION):
        return _plain(hydra.compose(command))


def _override(command: str, merged: dict[str, Any], parsed: list[Override]) -> dict[str, Any]:
    """Let Hydra lay the command line upon what the files say."""
    name = f"{command}_composed"
    ConfigStore.instance().store(name=name, node=OmegaConf.create(merged))
    texts = [override.input_line or "" for override in parsed if override.key_or_group != "config_paths"]
    try:
        with hydra.initialize_config_dir(str(package_root() / "conf"), version_base=_HYDRA_VERSION):
            return _plain(hydra.compose(name, overrides=texts))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([_override_problem(error, merged)]) from None


def _override_problem(error: Exception, merged: dict[str, Any]) -> Problem:
    unknown = _UNKNOWN_KEY.search(str(error))
    if unknown is None:
        return Problem(_first_line(error), source=COMMAND_LINE)
    key = unknown[1] or unknown[2]
    hint = near_miss(key, leaves(merged), instead="the keys there are")
    return Problem(f"there is no such key; {hint} (to add a new one, write +{key}=…)", key, COMMAND_LINE)


def _command_line(parsed: list[Override]) -> dict[str, Any]:
    """The values of the command line alone, to say later where a value came from."""
    tree: dict[str, Any] = {}
    for override in parsed:
        if override.is_delete() or override.key_or_group == "config_paths":
            continue
        value: Any = override.value()
        for step in reversed(override.key_or_group.split(".")):
            value = {step: value}
        tree = directives.merge(tree, value)
    return tree


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _resolve(tree: dict[str, Any], origin: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree with its interpolations resolved, or one problem that lists all that is not set."""
    resolver = _Interpolations(origin)
    resolved = resolver.walk(OmegaConf.create(tree), "")
    return resolved, list(resolver.problems())


class _Interpolations:
    """Resolves value by value. Owns what is unset and what is unknown."""

    def __init__(self, origin: Mapping[str, str]) -> None:
        self._origin = origin
        self._unset: list[str] = []
        self._unknown: dict[str, list[str]] = {}
        self._broken: list[Problem] = []

    def walk(self, node: Any, at: str) -> Any:
        if isinstance(node, ListConfig):
            return [self._read(node, index, f"{at}[{index}]") for index in range(len(node))]
        if isinstance(node, DictConfig):
            keys = [(key, str(key)) for key in node]
            return {name: self._read(node, key, f"{at}.{name}" if at else name) for key, name in keys}
        return node

    def problems(self) -> Iterator[Problem]:
        yield from self._broken
        if self._unset or self._unknown:
            yield Problem("\n".join(self._lines()))

    def _read(self, node: DictConfig | ListConfig, key: Any, at: str) -> Any:
        try:
            return self.walk(node[key], at)
        except MissingMandatoryValue:
            self._unset.append(at)
        except (InterpolationKeyError, InterpolationToMissingValueError) as error:
            name = _UNRESOLVED.search(str(error))
            if name is None:
                self._unset.append(at)
            else:
                self._unknown.setdefault(name[1], []).append(at)
        except OmegaConfBaseException as error:
            self._broken.append(Problem(_first_line(error), at, _source_of(at, self._origin)))
        return None

    def _lines(self) -> Iterator[str]:
        if self._unset:
            yield f"{len(self._unset)} required value{_s(self._unset)} not set (???):"
            for path in self._unset:
                yield f"    {path}{self._from(path)}; give it: ++{path}=<value>"
        if self._unknown:
            yield f"{len(self._unknown)} key{_s(self._unknown)} referred to and set nowhere:"
            for name, users in self._unknown.items():
                yield f"    {name}, for {', '.join(f'{path}{self._from(path)}' for path in users)}"
            yield f"  put into {ENV_FILE} in the working directory, the place for keys:"
            yield from (f"    {name}: <value>" for name in self._unknown)
            yield f"  or give on the command line: {' '.join(f'++{name}=<value>' for name in self._unknown)}"

    def _from(self, path: str) -> str:
        source = _source_of(path, self._origin)
        return f" ({source})" if source else ""


def _source_of(path: str, origin: Mapping[str, str]) -> str | None:
    """The source of a value, or of the first value below a mapping."""
    plain = re.sub(r"\[\d+\].*", "", path)
    return origin.get(plain) or next((label for leaf, label in origin.items() if leaf.startswith(f"{plain}.")), None)


def _almost_servers(problems: list[Problem], what_now: str) -> str:
    lines = "".join(f"\n    {problem}" for problem in problems)
    return f"Almost-Server: {len(problems)} validation errors in almost-server blocks ({what_now}):{lines}"


def _visible_secrets(parsed: list[Override]) -> Iterator[str]:
    for override in parsed:
        if names_secret(override.key_or_group) and isinstance(override._value, str | list):  # noqa: SLF001
            yield (
                f"{override.key_or_group} is on the command line, where others on this machine can see it; "
                f"{ENV_FILE} is the place for keys"
            )


def _s(entries: Sequence[object] | Mapping[str, object]) -> str:
    return " is" if len(entries) == 1 else "s are"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
