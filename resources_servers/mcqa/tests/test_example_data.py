"""The example set is sound: every row can be graded, and only its gold letter is right."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from resources_servers.mcqa.app import MCQA, MCQAOptions

ROWS = [orjson.loads(line) for line in (Path(__file__).parents[1] / "data" / "example.jsonl").read_bytes().splitlines()]
ARITHMETIC = {
    "What is 17 × 23?": 17 * 23,
    "What is the sum of the first 50 positive integers?": sum(range(51)),
    "What is the remainder when 2 to the power of 10 is divided by 7?": 2**10 % 7,
    "How many diagonals does a convex octagon have?": 8 * 5 // 2,
    "How many prime numbers are smaller than 30?": sum(all(n % d for d in range(2, n)) for n in range(2, 30)),
    "What is the binary number 101101 in decimal?": 0b101101,
    "How many different values can be stored in 8 bits?": 2**8,
    "What comes next: 1, 1, 2, 3, 5, 8, 13, …?": 8 + 13,
}


def said(letter):
    return {"output": [{"type": "message", "content": [{"type": "output_text", "text": f"\\boxed{{{letter}}}"}]}]}


def question(row):
    return row["responses_create_params"]["input"][0]["content"].split("Question: ")[1].split("\n")[0]


def gold_text(row):
    return next(option[row["expected_answer"]] for option in row["options"] if row["expected_answer"] in option)


@pytest.mark.parametrize("row", ROWS, ids=[question(row)[:40] for row in ROWS])
async def test_only_the_gold_letter_is_rewarded(row):
    environment = MCQA("mcqa", MCQAOptions())
    verdicts = {
        letter: (await environment.verify({}, {**row, "response": said(letter)}))["reward"] for letter in "ABCDEFGHIJ"
    }
    assert verdicts == {letter: float(letter == row["expected_answer"]) for letter in "ABCDEFGHIJ"}
    texts = [text for option in row["options"] for text in option.values()]
    assert len(texts) == len(set(texts)) == 10
    assert all(
        f"{letter}: {text}" in row["responses_create_params"]["input"][0]["content"]
        for option in row["options"]
        for letter, text in option.items()
    )


def test_the_set_is_varied_and_balanced():
    letters = Counter(row["expected_answer"] for row in ROWS)
    assert (len(ROWS), set(letters.values())) == (50, {5})
    assert len({row["metadata"]["subject"] for row in ROWS}) >= 6
    assert len({row["uuid"] for row in ROWS}) == len({question(row) for row in ROWS}) == 50


@pytest.mark.parametrize(("asked", "answer"), ARITHMETIC.items(), ids=ARITHMETIC)
def test_what_can_be_computed_is_right(asked, answer):
    assert gold_text(next(row for row in ROWS if question(row) == asked)) == str(answer)
