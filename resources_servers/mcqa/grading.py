"""Reads the chosen letter out of a model's answer. Pure.

The rules are NeMo Gym's, mode by mode. A model's output is hostile input: every rule works in time linear in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

Options = Mapping[str, str]
"""Letter (upper case) -> the option's text."""

Grader = Callable[[str, Options], str | None]

MAX_REGEX_CHARS = 1000
MAX_REGEX_TEXT_CHARS = 20_000
"""A data set's own regex runs over the end of the answer only: a careless one must not hold up a run."""

_BOX = "\\boxed{"
_WRAPPER = "\\text{"
_LEADING_LETTER = re.compile(r"([A-Z])\s*[:).\-]")
_ANSWER_COLON = re.compile(r"answer[ \t]*:[ \t]*(.+)", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"(?<![a-z])answer(?![a-z])[ \t*_]*:[ \t*_]*(.*)", re.IGNORECASE)
_MARKUP = str.maketrans("", "", "*_`$")
_LIST = re.compile(r"[A-Z](?:\s*(?:,|/|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?[A-Z]\b)+")
_LETTER = re.compile(r"\b[A-Z]\b")
FULL_WIDTH_A = 0xFF21
_SCRIPTS = str.maketrans(
    dict(zip("أبجد", "ABCD", strict=True))
    | {"অ": "A", "ব": "B", "ড": "C", "ঢ": "D"}
    | {chr(FULL_WIDTH_A + place): letter for place, letter in enumerate("ABCDEFGHIJ")}
)


def extract(text: str, options: Options, mode: str, regexes: Sequence[str] = ()) -> str | None:
    """The letter that ``text`` chooses, or None: by the data set's regexes first, then by the grading mode."""
    text = text.strip()
    if not text:
        return None
    return _by_regexes(text, options, regexes) or GRADERS[mode](text, options)


def strict_boxed(text: str, options: Options) -> str | None:
    """One upper-case letter in the last box, alone or leading."""
    box = _last_box(text)
    if box is None:
        return None
    inside = _unwrap(box)
    letters = [sign for sign in inside if sign.isalpha()]
    if len(letters) == 1:
        letter = letters[0]
    else:
        leading = _LEADING_LETTER.match(inside)
        letter = leading[1] if leading else ""
    return letter if letter in options else None


def lenient_boxed(text: str, options: Options) -> str | None:
    """As strict; else the one option whose text is in the box."""
    strict = strict_boxed(text, options)
    box = _last_box(text)
    if strict is not None or box is None:
        return strict
    inside = _normalise(_unwrap(box))
    found = [letter for letter, option in options.items() if _normalise(option) and _normalise(option) in inside]
    return found[0] if len(found) == 1 else None


def lenient_colon(text: str, options: Options) -> str | None:
    """After the first ``answer:``, a single letter or an option's text."""
    match = _ANSWER_COLON.search(text)
    if match is None:
        return None
    said = _unwrap(match[1]).strip()
    if len(said) == 1:
        return said.upper() if said.upper() in options else None
    return _letter_of(said, options)


def lenient_colon_markdown(text: str, options: Options) -> str | None:
    """After the last ``Answer:`` that gives a letter, whatever markup stands around it."""
    for line in reversed(text.splitlines()):
        match = _ANSWER_LINE.search(line)
        letter = _chosen(match[1], options) if match else None
        if letter is not None:
            return letter
    return None


GRADERS: dict[str, Grader] = {
    "strict_single_letter_boxed": strict_boxed,
    "lenient_boxed": lenient_boxed,
    "lenient_answer_colon": lenient_colon,
    "lenient_answer_colon_md": lenient_colon_markdown,
}
DEFAULT_MODE = "strict_single_letter_boxed"


def _chosen(said: str, options: Options) -> str | None:
    said = _unwrap(said).translate(_MARKUP).translate(_SCRIPTS).strip()
    listed = _LIST.search(said)
    if listed is not None and len(set(_LETTER.findall(listed[0]))) > 1:
        return None
    bare = said.strip("()[]{}.:- ")
    leading = re.match(r"[(\[{]?([A-Z])(?![A-Za-z])", said)
    if leading is None and len(bare) == 1 and bare.upper() in options:
        return bare.upper()
    letters = [leading[1]] if leading else _LETTER.findall(said)[-1:]
    return letters[0] if letters and letters[0] in options else None


def _by_regexes(text: str, options: Options, regexes: Sequence[str]) -> str | None:
    for pattern in regexes:
        said = _last_match(pattern, text)
        if said is None:
            continue
        if len(said) == 1 and said.isalpha():
            return said.translate(_SCRIPTS).upper()
        letter = _letter_of(said, options)
        if letter is not None:
            return letter
    return None


def _last_match(pattern: str, text: str) -> str | None:
    if len(pattern) > MAX_REGEX_CHARS:
        return None
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error:
        return None
    match = None
    for match in compiled.finditer(text[-MAX_REGEX_TEXT_CHARS:]):  # noqa: B007  the last one counts
        pass
    if match is None:
        return None
    return ((match[1] if compiled.groups else match[0]) or "").strip()


def _letter_of(said: str, options: Options) -> str | None:
    wanted = _normalise(said)
    return next((letter for letter, option in options.items() if wanted and _normalise(option) == wanted), None)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())


def _last_box(text: str) -> str | None:
    """What stands in the last box that is closed, its braces counted."""
    last = None
    opened: list[int | None] = []
    for start, sign, box in _braces(text):
        if sign == "{":
            opened.append(start + 1 if box else None)
        elif opened and (begin := opened.pop()) is not None:
            last = max(last or (-1, -1), (begin, start))
    return None if last is None else text[last[0] : last[1]]


def _braces(text: str) -> Iterator[tuple[int, str, bool]]:
    """Every brace: where, which, and whether it opens a box."""
    for match in re.finditer(r"[{}]", text):
        start = match.start()
        yield start, match[0], match[0] == "{" and text.startswith(_BOX, start - len(_BOX) + 1)


def _unwrap(text: str) -> str:
    r"""The text without its \text{…} wrappers, nested ones too."""
    if _WRAPPER not in text:
        return text
    kept: list[str] = []
    opened: list[bool] = []
    at = 0
    for match in re.finditer(r"\\text\{|[{}]", text):
        kept.append(text[at : match.start()])
        at = match.end()
        if match[0] == "}":
            wrapper = opened.pop() if opened else False
            kept.append("" if wrapper else "}")
        else:
            opened.append(match[0] != "{")
            kept.append("" if opened[-1] else "{")
    return "".join((*kept, text[at:])).strip()
