"""ng_reward_profile: says for each task how often a model solved it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command, find_path
from gymlet.cli.console import EXIT_OK, note, run_command
from gymlet.config.commands import RewardProfileOptions
from gymlet.rollout.profile import profile_rewards

USAGE = """
ng_reward_profile +materialized_inputs_jsonl_fpath=RUN_materialized_inputs.jsonl +rollouts_jsonl_fpath=RUN.jsonl \\
    +output_jsonl_fpath=PROFILE.jsonl [+pass_threshold=1.0]

Writes a row per task: its input, the average, deviation, least and greatest of its rewards, and the share of its
rollouts that passed: to choose tasks that are neither too easy nor too hard.
"""

COMMAND = "ng_reward_profile"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Profile, and show how many tasks are how hard."""
    _, options = compose_command(COMMAND, arguments, RewardProfileOptions)
    profile = profile_rewards(
        find_path(options.materialized_inputs_jsonl_fpath, "materialized_inputs_jsonl_fpath"),
        find_path(options.rollouts_jsonl_fpath, "rollouts_jsonl_fpath"),
        Path(options.output_jsonl_fpath),
        pass_threshold=options.pass_threshold,
    )
    out.print(f"{profile.tasks} tasks in {options.output_jsonl_fpath}", markup=False)
    out.print(f"always passed {profile.always}, sometimes {profile.sometimes}, never {profile.never}")
    if profile.without_rollouts:
        note(f"tasks without a rollout: {profile.without_rollouts}")
    return EXIT_OK
