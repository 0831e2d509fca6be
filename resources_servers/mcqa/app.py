"""Multiple-choice question answering: the reward is 1 for the right letter, and 0 otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gymlet.config.schema import EnvironmentOptions
from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.environment import Environment, Session, output_text
from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import check, one_of
from resources_servers.mcqa.grading import DEFAULT_MODE, GRADERS, Options, extract

Mode = Literal["strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MCQAOptions(EnvironmentOptions):
    """``grading_mode``: for all rows, whatever they say themselves."""

    grading_mode: Mode | None = None


class MCQA(Environment):
    """A question, its options, one right letter."""

    Options: ClassVar[type[EnvironmentOptions]] = MCQAOptions
    options: MCQAOptions
    metrics: ClassVar[MetricsSpec] = MetricsSpec(
        scores={"accuracy": "reward"},
        answer_key="extracted_answer",
        key_metrics=(
            "mean/reward",
            "pass@1/accuracy",
            "pass@1[avg-of-{k}]/accuracy",
            "pass@1[avg-of-{k}]/no_answer",
            "pass@{k}/no_answer",
            "majority@{k}/accuracy",
        ),
    )

    async def verify(self, session: Session, row: Json) -> Json:  # noqa: ARG002  an answer is all there is to see
        """Reward, expected and extracted answer. Raises RequestError for a row that cannot be graded."""
        mode = self.options.grading_mode or row.get("grading_mode") or DEFAULT_MODE
        one_of(mode, GRADERS, "grading_mode")
        gold = str(row.get("expected_answer") or "").strip().upper()
        letter = extract(output_text(row["response"]), _options(row), mode, _regexes(row))
        return {
            "reward": 1.0 if gold and letter == gold else 0.0,
            "expected_answer": gold,
            "extracted_answer": letter,
        }


def _options(row: Json) -> Options:
    given = row.get("options") or []
    check(given, (list,), "options")
    for at, option in enumerate(given):
        check(option, (dict,), f"options[{at}]")
    options = {
        letter.upper(): str(text)
        for option in given
        for letter, text in option.items()
        if text is not None and len(letter) == 1 and letter.isalpha()
    }
    if not options:
        raise RequestError("'options' must hold at least one option: [{'A': 'text'}, …]", param="options")
    return options


def _regexes(row: Json) -> list[str]:
    given = (row.get("template_metadata") or {}).get("output_regex") or []
    return [pattern for pattern in ([given] if isinstance(given, str) else given) if isinstance(pattern, str)]
