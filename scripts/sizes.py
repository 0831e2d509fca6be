"""Reports how long functions and modules are: a look in the mirror, no verdict."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

FOLDERS = ("gymlet", "responses_api_models", "responses_api_agents", "resources_servers", "scripts")


def main() -> None:
    """Print median, 90th percentile and maximum."""
    modules: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.py") if "tests" not in path.parts):
        text = path.read_text()
        modules.append((text.count("\n"), str(path)))
        functions.extend(
            ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
    for what, sizes in (("modules", modules), ("functions", functions)):
        sizes.sort()
        lines = [size for size, _ in sizes]
        median, p90 = statistics.median(lines), lines[len(lines) * 9 // 10]
        print(f"{what}: {len(lines)}, median {median:g} lines, p90 {p90}, longest {lines[-1]} ({sizes[-1][1]})")


if __name__ == "__main__":
    main()
