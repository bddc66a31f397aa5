"""What a run's labels are worth against those of the log: lost, double, contradictory, wrong. Pure."""

from collections import Counter
from typing import NamedTuple

from tests.stream.oracle import Label

_Place = tuple[str, str, str, str]
"""(request_id, item_id, task, kind): under every policy there is at most one label of a kind."""


class Verdict(NamedTuple):
    """How many labels are in each way not as they must be; all 0 is right."""

    labels: int
    """Labels that must be there."""
    lost: int
    """Not there at all."""
    double: int
    """There again, the same."""
    contradictory: int
    """There with 0 and with 1."""
    wrong: int
    """There, but another than must be, or none must be."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.double or self.contradictory or self.wrong)


def judge(expected: Counter[Label], seen: Counter[Label]) -> Verdict:
    """Returns the verdict on the labels seen, given each label that must be there once.

    >>> one, zero = ("r", "a", "click", "final", 1, 5), ("r", "a", "click", "final", 0, -1)
    >>> judge(Counter([one]), Counter([one, one]))
    Verdict(labels=1, lost=0, double=1, contradictory=0, wrong=0)
    >>> judge(Counter([one]), Counter([one, zero]))
    Verdict(labels=1, lost=0, double=0, contradictory=1, wrong=1)
    >>> judge(Counter([one]), Counter([zero])), judge(Counter([one]), Counter())
    (Verdict(labels=1, lost=0, double=0, contradictory=0, wrong=1), Verdict(labels=1, lost=1, double=0, contradictory=0, wrong=0))
    """  # noqa: E501 - the output of a doctest cannot be broken
    values: dict[_Place, set[int]] = {}
    for label in seen:
        values.setdefault(label[:4], set()).add(label[4])
    return Verdict(
        labels=expected.total(),
        lost=sum(label[:4] not in values for label in expected),
        double=sum(number - 1 for number in seen.values()),
        contradictory=sum(len(found) > 1 for found in values.values()),
        wrong=len(seen.keys() - expected.keys()),
    )
