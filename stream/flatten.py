"""Columns per slate to one flat column of the items that go out, without a loop over items in Python."""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

_Pick = Callable[[Sequence[Any]], Sequence[Any]]


class Flattener:
    """Flattens columns of some slates, each as long as its slate, to the rows that are asked for.

    >>> flat = Flattener(rows=[[0, 1], [2]], num_items=[2, 3])
    >>> flat([["a", "b"], ["c", "d", "e"]])
    ['a', 'b', 'e']
    >>> flat([None, [7, 8, 9]])
    [None, None, 9]
    """

    def __init__(self, rows: Sequence[Sequence[int]], num_items: Sequence[int]) -> None:
        self._num_items = num_items
        self._picks = [
            None if len(wanted) == length else _pick(wanted) for wanted, length in zip(rows, num_items, strict=True)
        ]
        self._is_whole = all(pick is None for pick in self._picks)

    def __call__(self, columns: Sequence[Sequence[Any] | None]) -> list[Any]:
        """Returns the flat column; None for the items of a slate that has no such column."""
        present: Sequence[Sequence[Any]] = [
            [None] * length if column is None else column
            for column, length in zip(columns, self._num_items, strict=True)
        ]
        if not self._is_whole:
            present = [
                column if pick is None else pick(column) for column, pick in zip(present, self._picks, strict=True)
            ]
        return list(chain.from_iterable(present))


def _pick(rows: Sequence[int]) -> _Pick:
    # itemgetter of one index returns the item itself, of a slice a list.
    return itemgetter(*rows) if len(rows) > 1 else itemgetter(slice(rows[0], rows[0] + 1))
