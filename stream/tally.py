"""What came of an explored slate: the distinct actions on its items within the reward window, added up.

slate                    slate + outcome window                  + grace
  |--- action counts, both ends ---|--- only waiting for it ---|--- watermark in here: closed, the outcome goes out
"""

import sys
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from stream.schema import CONTROL_LAW, Candidates, Feedback, Impression, Items, Served

_LARGEST = sys.float_info.max
_LAWS = ("lognormal", "grid")


class Total(NamedTuple):
    """The distinct actions of one name on one item."""

    value: float
    """Sum of their values, in the order of the log."""
    first_ms: int
    """Event time of the earliest."""


Totals = Mapping[str, Mapping[int, Total]]
"""Action -> position of the item -> total."""


class Tally(msgspec.Struct, array_like=True):
    """The actions on one explored slate so far."""

    totals: dict[str, dict[int, Total]] = {}
    event_ids: set[str] = set()
    """Of the actions that count: the same one again does not."""

    def add(self, row: int, feedback: Feedback) -> bool:
        """Adds an action on the item at `row`; returns False, and adds nothing, if it was added before."""
        if feedback.event_id in self.event_ids:
            return False
        self.event_ids.add(feedback.event_id)
        rows = self.totals.setdefault(feedback.action, {})
        before = rows.get(row)
        if before is None:
            rows[row] = Total(feedback.value, feedback.ts)
        else:
            # Kept finite: a snapshot of the state is JSON, which has no infinity.
            value = min(max(before.value + feedback.value, -_LARGEST), _LARGEST)
            rows[row] = Total(value, min(before.first_ms, feedback.ts))
        return True


def wants_outcome(impression: Impression) -> bool:
    """Returns whether a slate was explored and its other candidates logged, or is one to compare explored ones with."""
    served = impression.served
    if served is None:
        return False
    return served.law == CONTROL_LAW or (served.explore and impression.candidates is not None)


def is_complete(impression: Impression, tasks: Collection[str]) -> bool:
    """Returns whether a slate that wants an outcome carries everything that its draw can be judged by.

    That is the draw, its centre and its law, the scale and the score of every task, and each candidate once; without a
    draw only the shown ones are there. What our ranker logs does; a log from elsewhere, or of a release that logged
    less, may not.
    """
    served = impression.served
    candidates: Candidates | Items | None = impression.candidates
    if served is not None and served.law == CONTROL_LAW and candidates is None:
        candidates = impression.items
    elif served is None or candidates is None or not _is_law_known(served):
        return False
    by_task = (served.weights, served.center, served.scale, impression.items.scores, candidates.scores)
    if not all(task in column for task in tasks for column in by_task):
        return False
    ids = impression.items.id if candidates is impression.items else [*impression.items.id, *candidates.id]
    return len(set(ids)) == len(ids) and all(served.scale[task] > 0 for task in tasks)


def _is_law_known(served: Served) -> bool:
    if served.law == "lognormal" and (served.tau is None or served.truncate is None):
        return False
    return served.law in _LAWS and served.log_density is not None
