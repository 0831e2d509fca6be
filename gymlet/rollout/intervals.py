"""How sure a mean is: 95 % intervals for rollouts that come in tasks.

Rollouts of one task resemble each other, so that ten rollouts of ten tasks tell less than a hundred of a hundred: the
interval takes the tasks as clusters (Liang and Zeger 1986; for evaluations Miller 2024, "Adding Error Bars to Evals").
Single binary rollouts have Wilson's score interval (Wilson 1927), which holds near 0 and 1 and for few tasks.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

Z_975 = 1.959963984540054
"""The normal distribution's quantile at 97.5 %."""

_T_975 = (
    12.70620474, 4.30265273, 3.18244631, 2.77644511, 2.57058184, 2.44691185, 2.36462425, 2.30600414, 2.26215716,
    2.22813885, 2.20098516, 2.17881283, 2.16036866, 2.14478669, 2.13144955, 2.11990530, 2.10981558, 2.10092204,
    2.09302405, 2.08596345, 2.07961384, 2.07387307, 2.06865761, 2.06389856, 2.05953855, 2.05552944, 2.05183052,
    2.04840714, 2.04522964, 2.04227246,
)  # fmt: skip
"""Student's t at 97.5 %, from 1 degree of freedom on."""

Method = Literal["wilson", "t_clustered_by_task"]
"""How an interval was made."""


class Interval(NamedTuple):
    """A mean with its 95 % interval, in the values' own unit.

    The mean is None where there are no values, the bounds are None where there are values of one task only.
    """

    mean: float | None
    low: float | None
    high: float | None
    method: Method


class Clusters:
    """The values of one score, task by task. Owns their sums: 12 bytes a task, however many rollouts it has."""

    def __init__(self) -> None:
        self._sums = array("d")
        self._counts = array("I")
        self._zeros = 0
        self._ones = 0
        self._within = True

    def add(self, values: Sequence[float]) -> None:
        """The values of one task."""
        if not values:
            return
        self._sums.append(math.fsum(values))
        self._counts.append(len(values))
        for value in values:
            self._zeros += value == 0
            self._ones += value == 1
            self._within = self._within and 0 <= value <= 1

    @property
    def total(self) -> float:
        """The sum of all values."""
        return math.fsum(self._sums)

    def interval(self) -> Interval:
        """The mean over all values, and how sure it is."""
        tasks, count = len(self._sums), sum(self._counts)
        if not count:
            return Interval(None, None, None, "t_clustered_by_task")
        mean = self.total / count
        binary_singles = tasks == count == self._zeros + self._ones
        alike = count in (self._zeros, self._ones)  # no spread to measure: count tasks
        if binary_singles or alike:
            return Interval(mean, *wilson(mean, tasks), "wilson")
        if tasks < 2:
            return Interval(mean, None, None, "t_clustered_by_task")
        half = self._half(mean, tasks, count)
        low, high = mean - half, mean + half
        if self._within:
            low, high = max(0.0, low), min(1.0, high)
        return Interval(mean, low, high, "t_clustered_by_task")

    def _half(self, mean: float, tasks: int, count: int) -> float:
        squares = math.fsum((total - size * mean) ** 2 for total, size in zip(self._sums, self._counts, strict=True))
        return t_975(tasks - 1) * math.sqrt(tasks / (tasks - 1) * squares) / count


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Wilson's score interval for the proportion ``mean`` of ``count`` trials."""
    z2 = Z_975**2
    centre = (mean + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_975 * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def t_975(degrees: int) -> float:
    """Student's t at 97.5 %: tabled up to 30 degrees, then by Cornish and Fisher's expansion, right to 7 digits."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z, v = Z_975, degrees
    return z + math.fsum(
        (
            (z**3 + z) / (4 * v),
            (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
        )
    )
