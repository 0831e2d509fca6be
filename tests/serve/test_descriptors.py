"""How many files a process may open."""

import pytest

from gymlet.serve.descriptors import shortage

SHORTAGES = {
    "enough": ((1000, 1, 20_000), None),
    "just enough": ((450, 1, 1000), None),
    "one too many": ((451, 1, 1000), "ulimit -n 1002'"),
    "several workers would do": ((16_000, 1, 20_000), "or spread the requests with num_workers=2"),
    "several workers do": ((16_000, 2, 20_000), None),
    "more workers would do": ((16_000, 2, 10_000), "take about 16100 open files in each process, and 10000 are allowed"),
    "not even workers would do": ((1_000_000, 1, 1024), "ulimit -n 2000100'; those beyond it fail"),
    "hardly any": ((10, 1, 64), "ulimit -n 120'; those beyond it fail"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "words"), SHORTAGES.values(), ids=SHORTAGES)
def test_what_does_not_fit_is_told_with_a_remedy(given, words):
    told = shortage(*given)
    assert told is None if words is None else words in told
