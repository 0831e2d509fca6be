"""The letter that an answer chooses, mode by mode."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources_servers.mcqa.grading import GRADERS, extract

OPTIONS = {letter: f"opt{letter}" for letter in "ABCDEFGHIJ"}
CASES = {
    "strict_single_letter_boxed": {
        r"\boxed{B}": "B",
        r"Final: \boxed{ [C] }": "C",
        r"\boxed{(D)}": "D",
        r"\boxed{\text{E}}": "E",
        r"\boxed{\text{\text{E}}}": "E",
        r"\boxed{E: because}": "E",
        r"\boxed{\text{I: genes can be read.}}": "I",
        r"\[ \boxed{E: \text{A score.}} \]": "E",
        r"\boxed{F) yes}": "F",
        r"\boxed{A} no, \boxed{B}": "B",
        r"\boxed{A} no, \boxed{B": "A",
        r"\boxed{b}": None,
        r"\boxed{AB}": None,
        r"\boxed{}": None,
        r"\boxed{Z}": None,
        "B": None,
        r"boxed{B}": None,
    },
    "lenient_boxed": {
        r"\boxed{C}": "C",
        r"\boxed{the OPTB  one}": "B",
        r"\boxed{optA and optB}": None,
        r"optB": None,
    },
    "lenient_answer_colon": {
        "Answer: c": "C",
        "ANSWER :D": "D",
        "Answer: optC": "C",
        "Answer: OPTC": "C",
        r"Answer: \text{E}": "E",
        "Answer: A\nAnswer: B": "A",
        "Answer: Z": None,
        "**Answer:** B": None,
        "The answer is B": None,
    },
    "lenient_answer_colon_md": {
        "Answer: B": "B",
        "**Answer:** B": "B",
        "**Answer: B**": "B",
        "__Answer__: A": "A",
        "Answer: $C$": "C",
        "Answer: (D)": "D",
        r"Answer: \text{E}": "E",
        "Answer: B, B": "B",
        "Answer: A\nAnswer: B": "B",
        "Answer: B\nAnswer: unknown": "B",
        "Answer: B\nAnswer: Z": "B",
        "Answer: B\nAnswer: A/B/C": "B",
        "Answer: A or B": None,
        "Answer: A and B": None,
        "Answer: A, B": None,
        "**Answer: D/H**": None,
        "Answer: Z": None,
        "Answer: أ": "A",
        "Answer: ব": "B",
        "Answer: Ｃ": "C",
        "I think it might be B": None,
    },
}
TABLE = [(mode, text, letter) for mode, cases in CASES.items() for text, letter in cases.items()]


@pytest.mark.parametrize(("mode", "text", "letter"), TABLE, ids=[f"{mode}: {text!r}" for mode, text, _ in TABLE])
def test_letters(mode, text, letter):
    assert extract(text, OPTIONS, mode) == letter


REGEXES = {
    "wins over the mode": ("Option: B, \\boxed{C}", [r"Option:\s*([A-Z])"], "B"),
    "any case": ("ANSWER IS b", [r"answer is\s*([A-Z])"], "B"),
    "the last match": ("X: A, X: D", [r"X:\s*([A-Z])"], "D"),
    "each in order": ("Antwort: B", [r"Answer:\s*(\w)", r"Antwort:\s*(\w)"], "B"),
    "a letter outside the options": ("X: Z", [r"X:\s*([A-Z])"], "Z"),
    "an option's text": ("X: optc", [r"X:\s*(\w+)"], "C"),
    "another script": ("X: ب", [r"X:\s*(\S)"], "B"),
    "an invalid one counts as none": (r"\boxed{C}", ["("], "C"),
    "no group": ("pick D", ["D"], "D"),
}


@pytest.mark.parametrize(("text", "regexes", "letter"), REGEXES.values(), ids=REGEXES)
def test_regexes_of_the_row(text, regexes, letter):
    assert extract(text, OPTIONS, "strict_single_letter_boxed", regexes) == letter


@given(st.text(alphabet="\\boxed{}text AnswerBC:*_,/or\n", max_size=80), st.sampled_from(sorted(GRADERS)))
def test_whatever_is_said_only_options_are_chosen(text, mode):
    assert extract(text, OPTIONS, mode) in {None, *OPTIONS}


@pytest.mark.parametrize("mode", GRADERS)
@pytest.mark.parametrize("text", ["\\boxed{", "answer: ", "\\text{", "}", "A, ", "answer:*", "\n"])
def test_a_megabyte_of_spite_is_graded_at_once(mode, text):
    started = time.perf_counter()
    extract(text * (1_000_000 // len(text)), OPTIONS, mode)
    assert time.perf_counter() - started < 5
