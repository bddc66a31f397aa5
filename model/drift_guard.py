"""Staleness control: notices that the loss has risen for good, so that nobody holds the model to the old world.

ADWIN (Bifet and Gavalda, 2007): a window that is cut where the means of its two parts differ by more than chance. Old
values are merged into blocks of growing length, so that a window of n values takes about log n blocks. Departures: only
a rise is an alarm, a fall just cuts the window; and the variance is that within the two parts.
"""

from dataclasses import dataclass

import numpy as np

from model.metrics import Arrays

_BLOCKS_OF_A_SIZE = 5
"""Blocks of one length before the two oldest of them become one of twice the length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftGuardConfig:
    """When a rise of the loss is an alarm."""

    delta: float = 1e-4
    """Chance of a false alarm at each look; between 0 and 1."""
    min_steps: int = 50
    """Steps on either side of a rise, at least; at least 1."""

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: {self.delta} is not allowed; between 0 and 1")
        if self.min_steps < 1:
            raise ValueError(f"min_steps: {self.min_steps} is not allowed; at least 1")


class DriftGuard:
    """Watches the mean loss of steps.

    >>> guard = DriftGuard(DriftGuardConfig())
    >>> [n for n in range(400) if guard.update(0.3 + 0.01 * (n % 3) + 0.2 * (n >= 200))][:1]
    [209]
    """

    def __init__(self, config: DriftGuardConfig) -> None:
        self._config = config
        self._blocks = np.zeros((0, 3))
        """Number of values, their sum, their sum of squares; oldest first."""

    def update(self, loss: float) -> bool:
        """Takes the mean loss of one step in. Returns whether it has risen for good; the window then starts after."""
        self._blocks = np.vstack([self._blocks, [1.0, loss, loss * loss]])
        self._merge()
        return self._cut()

    def _merge(self) -> None:
        size = 1.0
        while True:
            same = np.flatnonzero(self._blocks[:, 0] == size)
            if len(same) <= _BLOCKS_OF_A_SIZE:
                return
            first, second = same[0], same[1]
            self._blocks[first] += self._blocks[second]
            self._blocks = np.delete(self._blocks, second, axis=0)
            size *= 2

    def _cut(self) -> bool:
        """Drops the older part if the newer one differs. Returns whether it is higher."""
        if len(self._blocks) < 2:
            return False
        old, total = np.cumsum(self._blocks, axis=0)[:-1], self._blocks.sum(axis=0)
        new = total - old
        num, num_old, num_new = total[0], old[:, 0], new[:, 0]
        is_long_enough = (num_old >= self._config.min_steps) & (num_new >= self._config.min_steps)
        # Around the two means, not around one: a rise shall not hide in the variance that it makes.
        squares = total[2] - old[:, 1] ** 2 / num_old - new[:, 1] ** 2 / num_new
        variance = np.maximum(squares / num, 0.0)
        harmonic = 1 / (1 / num_old + 1 / num_new)
        log_term = np.log(2 * np.log(max(num, np.e)) / self._config.delta)
        bound = np.sqrt(2 / harmonic * variance * log_term) + 2 / (3 * harmonic) * log_term * np.sqrt(variance)
        rise = new[:, 1] / num_new - old[:, 1] / num_old
        found = np.flatnonzero(is_long_enough & (np.abs(rise) > bound))
        if not len(found):
            return False
        self._blocks = self._blocks[found[-1] + 1 :]
        return bool(rise[found[-1]] > 0)

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly."""
        return {"blocks": self._blocks.copy()}

    def load_state(self, state: Arrays) -> None:
        """Takes up a state."""
        self._blocks = state["blocks"].copy()
