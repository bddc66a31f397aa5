"""Watching whether served scores still are what the learned weights were learned on.

Explored requests are looked at, for they log all candidates, as those did that the weights were learned from. Each
window gives one PSI per scenario and task. Above `ALARM` it is told; above `LIMIT` requests of that scenario get the
production weights, until a window is better. Explored requests go on around the learned weights: without them nobody
could learn new ones.
"""

import logging
from collections import defaultdict

import numpy as np

from ranker.stats import RankerStats
from stream.schema import Impression
from utility_blender.blend import Blender
from utility_blender.outcomes import Ints
from utility_blender.score_shift import ALARM, LIMIT

logger = logging.getLogger(__name__)

WINDOW = 500
"""Explored requests of a scenario in one window. Candidates of one request resemble each other, so requests are what
counts: chance alone gives a PSI of about 9 / 500 even if they all were alike."""


class ScoreShift:
    """Keeps `blender.shifted` at what has moved too far. For the event loop alone."""

    def __init__(self, blender: Blender, stats: RankerStats) -> None:
        self.psi: dict[tuple[str, str], float] = {}
        """PSI of the last whole window by scenario and task."""
        self._blender = blender
        self._stats = stats
        self._version = 0
        self._counts: dict[str, list[Ints]] = {}
        self._num_requests: defaultdict[str, int] = defaultdict(int)

    def saw(self, scenario: str, impression: Impression) -> None:
        """Takes an explored request of a listed scenario."""
        served, rest, version = impression.served, impression.candidates, self._blender.lanes.stable
        if version is None or version.version != self._version:
            self._forget(version.version if version else 0)
        if version is None or served is None or rest is None or served.blender != version.version:
            return
        references = version.references.get(scenario)
        if references is None:
            return
        columns = [impression.items.scores[task] + rest.scores[task] for task in self._blender.tasks]
        fresh = [reference.counts(np.array(column)) for reference, column in zip(references, columns, strict=True)]
        held = self._counts.get(scenario)
        counts = fresh if held is None else [old + new for old, new in zip(held, fresh, strict=True)]
        self._counts[scenario] = counts
        self._num_requests[scenario] += 1
        if self._num_requests[scenario] >= WINDOW:
            psi = [reference.psi(counts_B) for reference, counts_B in zip(references, counts, strict=True)]
            self._judge(scenario, dict(zip(self._blender.tasks, psi, strict=True)))
            del self._counts[scenario], self._num_requests[scenario]

    def _judge(self, scenario: str, psi: dict[str, float]) -> None:
        self.psi.update({(scenario, task): value for task, value in psi.items()})
        task, worst = max(psi.items(), key=lambda entry: entry[1])
        if worst > ALARM:
            self._stats.score_shift_alarms += 1
            logger.warning("Scores moved since the weights were learned: %s of %s, PSI %.2f", task, scenario, worst)
        here = {(self._version, scenario)}
        others = self._blender.shifted - here
        self._blender.shifted = others | here if worst > LIMIT else others

    def _forget(self, version: int) -> None:
        self._version = version
        self._blender.shifted = frozenset()
        self._counts.clear()
        self._num_requests.clear()
        self.psi.clear()
