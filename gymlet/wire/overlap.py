"""How much of a tag a text may have begun."""


def overlap(text: str, tag: str) -> int:
    """The length of the longest end of ``text`` that is a beginning, but not the whole, of ``tag``."""
    at = text.find(tag[0], max(0, len(text) - len(tag) + 1))
    while at >= 0:
        if tag.startswith(text[at:]):
            return len(text) - at
        at = text.find(tag[0], at + 1)
    return 0
