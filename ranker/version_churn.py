"""How far the rankings move from one version to the next: recent requests, ranked again by both at each swap.

Both versions blend with the same production weights, so what is measured is the model's part alone. Written by the
watcher's thread; the event loop only leaves requests here.

Shape letters: N requests, K candidates (padded).
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model.churn import ranks, rbo, top1_changed
from model.features import RowColumns
from ranker.live import LiveModel
from utility_blender.blend import Blender

MAX_REQUESTS = 8
"""Recent requests kept."""
MAX_CANDIDATES = 256
"""Candidates ranked again at a swap, by each version: fewer requests then, at least one."""
INTERVAL_S = 3.0
"""Swaps that follow a comparison sooner than this are not compared: it costs as much as answering the requests."""
NUM_SWAPS = 40
"""Comparisons that the figures are means of: where versions come fast, the last two minutes."""


class SwapChurn(NamedTuple):
    """What one swap changed."""

    num_requests: int
    num_top1_changed: int
    sum_rbo: float
    """Of RBO at p = .9 over the first ten, per request."""


class VersionChurn:
    """Churn between consecutive versions, over the last swaps."""

    def __init__(self, blender: Blender, elapsed_s: Callable[[], float]) -> None:
        """`elapsed_s` is a clock that never goes back, in seconds."""
        self._blender = blender
        self._elapsed_s = elapsed_s
        self._due_s = -math.inf
        self._requests: deque[tuple[RowColumns, str]] = deque(maxlen=MAX_REQUESTS)
        self._swaps: deque[SwapChurn] = deque(maxlen=NUM_SWAPS)

    def saw(self, columns: RowColumns, scenario: str) -> None:
        """Takes a request and the listed scenario whose weights rank it."""
        self._requests.append((columns, scenario))

    def compare(self, old: LiveModel, new: LiveModel, give_way: Callable[[], None] = lambda: None) -> None:
        """Ranks recent requests, the newest first, by both versions, if it is time again; `give_way` before each."""
        if self._elapsed_s() < self._due_s:
            return
        self._due_s = self._elapsed_s() + INTERVAL_S
        chosen: list[tuple[RowColumns, str]] = []
        num_candidates = 0
        for columns, scenario in reversed(self._requests.copy()):
            num_candidates += len(columns.item_id)
            if chosen and num_candidates > MAX_CANDIDATES:
                break
            chosen.append((columns, scenario))
        if chosen:
            self._swaps.append(self._churn(chosen, old, new, give_way))

    @property
    def top1_changed_share(self) -> float | None:
        """Share of requests with another first item; None before the first comparison."""
        return self._mean("num_top1_changed")

    @property
    def rbo(self) -> float | None:
        """Mean rank-biased overlap; None before the first comparison."""
        return self._mean("sum_rbo")

    def _mean(self, total: str) -> float | None:
        swaps = self._swaps.copy()
        return sum(getattr(swap, total) for swap in swaps) / sum(swap.num_requests for swap in swaps) if swaps else None

    def _churn(
        self,
        requests: list[tuple[RowColumns, str]],
        old: LiveModel,
        new: LiveModel,
        give_way: Callable[[], None],
    ) -> SwapChurn:
        shape = len(requests), max(len(columns.item_id) for columns, _ in requests)
        is_item_NK = np.zeros(shape, np.bool_)
        utility_NK = {version: np.zeros(shape) for version in ("old", "new")}
        for n, (columns, scenario) in enumerate(requests):
            by_id = np.argsort(np.array(columns.item_id), kind="stable")
            is_item_NK[n, : len(by_id)] = True
            weights_T = self._blender.production(scenario)
            for version, live in (("old", old), ("new", new)):
                give_way()
                utility = self._blender.utility(live.score(columns), weights_T)
                utility_NK[version][n, : len(by_id)] = utility[by_id]
        old_NK, new_NK = ranks(utility_NK["old"], is_item_NK), ranks(utility_NK["new"], is_item_NK)
        changed_N, rbo_N = top1_changed(old_NK, new_NK), rbo(old_NK, new_NK, is_item_NK)
        return SwapChurn(len(requests), int(changed_N.sum()), float(rbo_N.sum()))
