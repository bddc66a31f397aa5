"""A model in training that keeps only some rows in memory, as a publisher sees it, and what it would be with all."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model.hashing import Int64Array
from model.scenario_registry import ScenarioRegistry
from model.serving_rows import ServingRows

Tensors = dict[str, Tensor]


class ColdWorld:
    """Rows by key; each is in memory or not. What a test does to it, it exports as the trainer does."""

    def __init__(
        self,
        *,
        num_reserved: int = 2,
        width: int = 3,
        dense: Tensors | None = None,
        registry: ScenarioRegistry | None = None,
        seed: int = 0,
    ) -> None:
        self.rows: dict[int, Tensor] = {}
        self.hot: set[int] = set()
        self.width = width
        self._registry = registry
        self._dense = dense or {}
        self._num_reserved = num_reserved
        self._rng = np.random.default_rng(seed)
        self._changed: dict[int, int] = {}  # by key, the clock of its last change; and so on
        self._cooled: dict[int, int] = {}
        self._evicted: dict[int, int] = {}
        self._clock = self._exported = self._promoted = 0

    def learn(self, *keys: int) -> None:
        """Changes rows, admits those that are new; all of them are in memory then."""
        self._clock += 1
        for key in keys:
            self.rows[key] = torch.from_numpy(self._rng.standard_normal(self.width).astype(np.float32))
            self.hot.add(key)
            self._changed[key] = self._clock
            self._cooled.pop(key, None)
            self._evicted.pop(key, None)

    def warm(self, *keys: int) -> None:
        """Takes rows into memory without changing them."""
        for key in self.rows.keys() & set(keys):
            self.hot.add(key)
            self._cooled.pop(key, None)

    def cool(self, *keys: int) -> None:
        """Lets rows leave memory."""
        self._clock += 1
        for key in self.hot & set(keys):
            self.hot.remove(key)
            self._cooled[key] = self._clock

    def evict(self, *keys: int) -> None:
        """Removes rows, wherever they are."""
        self._clock += 1
        for key in self.rows.keys() & set(keys):
            del self.rows[key]
            self.hot.discard(key)
            self._cooled.pop(key, None)
            self._evicted[key] = self._clock

    @property
    def registry(self) -> ScenarioRegistry:
        assert self._registry is not None
        return self._registry

    @property
    def num_cold(self) -> int:
        return len(self.rows) - len(self.hot)

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        cold = sorted(self.rows.keys() - self.hot)
        for start in range(0, len(cold), 2):
            yield self._of(cold[start : start + 2])

    def cooled(self) -> tuple[Int64Array, Tensor]:
        return self._of(sorted(key for key, at in self._cooled.items() if at > self._promoted))

    def evicted(self) -> Int64Array:
        return np.array(sorted(key for key, at in self._evicted.items() if at > self._promoted), np.int64)

    def serving_full(self) -> Tensors:
        return self._serving(self.hot, self.evicted())

    def serving_delta(self) -> Tensors:
        recent = {key for key, at in self._changed.items() if at > self._promoted}
        return self._serving(recent & self.hot, self.evicted())

    def mark_promoted(self) -> None:
        self._promoted = self._exported

    def complete(self) -> ServingRows:
        """Returns what somebody holds who holds all rows of now."""
        keys, weights = self._of(sorted(self.rows))
        return ServingRows.empty(num_reserved=self._num_reserved, width=self.width).after(
            self._tensors(keys, weights, np.empty(0, np.int64))
        )

    def _serving(self, keys: set[int], evicted: Int64Array) -> Tensors:
        self._exported = self._clock
        tensors = self._tensors(*self._of(sorted(keys)), evicted)
        return self._dense | tensors | {"rows.cooled": torch.from_numpy(self.cooled()[0])}

    def _tensors(self, keys: Int64Array, weights: Tensor, evicted: Int64Array) -> Tensors:
        reserved = torch.arange(self._num_reserved * self.width, dtype=torch.float32).view(-1, self.width)
        return {
            "rows.keys": torch.from_numpy(keys),
            "rows.weights": weights,
            "rows.evicted": torch.from_numpy(evicted),
            "rows.reserved": 0.01 * reserved,
        }

    def _of(self, keys: list[int]) -> tuple[Int64Array, Tensor]:
        weights = [self.rows[key] for key in keys]
        return np.array(keys, np.int64), torch.stack(weights) if weights else torch.empty(0, self.width)
