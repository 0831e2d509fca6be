"""The keys of the commands around a run; conf/<command>.yaml says what each does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gymlet.config.datasets import Split
from gymlet.config.schema import PositiveFloat, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """ng_export."""

    input_jsonl_fpath: str
    output_fpath: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializePromptsOptions:
    """ng_materialize_prompts."""

    input_jsonl_fpath: str
    prompt_config: str
    output_jsonl_fpath: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardProfileOptions:
    """ng_reward_profile."""

    materialized_inputs_jsonl_fpath: str
    rollouts_jsonl_fpath: str
    output_jsonl_fpath: str
    pass_threshold: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateOptions:
    """ng_aggregate_rollouts."""

    input_glob: str
    output_jsonl_fpath: str
    merge_shards: bool = True
    allow_incomplete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverifyOptions:
    """ng_reverify."""

    rollouts_jsonl_fpath: str
    output_jsonl_fpath: str
    materialized_inputs_jsonl_fpath: str | None = None
    num_samples_in_parallel: PositiveInt = 64
    rollout_timeout_s: PositiveFloat | None = None
    replay_tools: bool = True
    disable_aggregation: bool = False
    overwrite: bool = False
    allow_incomplete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareDataOptions:
    """ng_prepare_data."""

    output_dirpath: str
    mode: Literal["train_preparation", "example_validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEndOptions:
    """ng_e2e_collect_rollouts: what it adds to the keys of ng_collect_rollouts."""

    output_jsonl_fpath: str
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrypointOptions:
    """ng_test and ng_init_resources_server."""

    entrypoint: str
