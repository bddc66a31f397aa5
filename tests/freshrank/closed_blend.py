"""A closed loop for the blend worker: users explored around whatever its store says, with known truth behind."""

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freshrank.blend_step import Production, scale_by_scenario
from freshrank.blend_worker import BlendParts, BlendWorker
from freshrank.study_blender_world import NUMERIC, SCENARIO, World, contexts_of
from model.source import ExampleMessage
from utility_blender.blend import BlenderConfig
from utility_blender.contexts import Contexts, Floats
from utility_blender.explore import ExploreConfig
from utility_blender.learned import policy_from_dict
from utility_blender.outcomes import Outcomes, concat
from utility_blender.policy import Policy
from utility_blender.store import BlenderStore, Pointer

EXPLORE = ExploreConfig(share=0.5, allow_above_cap=True)


@dataclass(frozen=True)
class InUnits:
    """A version's weights in units of the world's scale."""

    policy: Policy
    factor_T: Floats

    def weights(self, contexts: Contexts) -> Floats:
        weights_NT: Floats = self.policy.weights(contexts) * self.factor_T
        return weights_NT


class AtOnce(Executor):
    """Runs what it is given before it returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except ValueError as error:
            future.set_exception(error)
        return future


class ClosedLoop:
    """A source of outcomes. Message n holds explored requests and as many served plainly, by the pointer's versions."""

    def __init__(self, world: World, store: BlenderStore, batch: int = 500) -> None:
        self.world, self.store, self.batch = world, store, batch
        self.made: list[Outcomes] = []
        self.spoiled: set[int] = set()
        """Versions whose users turn away: the gate could not have known."""
        self._next = 0

    def partitions(self) -> list[int]:
        return [0]

    def seek(self, offsets: dict[int, int]) -> None:
        self._next = offsets.get(0, 0)

    def finished(self) -> list[int]:
        return []

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        if self._next == len(self.made):
            self.made.append(self._make(len(self.made)))
        self._next += 1
        return [ExampleMessage(0, self._next - 1, str(self._next - 1).encode())]

    def decode(self, value: bytes) -> Outcomes:
        if not value.isdigit():
            raise ValueError("outcomes: cannot be read")
        return self.made[int(value)]

    def policy(self, version: int) -> Policy:
        """Returns a version's weights in units of the world's scale."""
        if version == 0:
            return self.world.static
        found = self.store.get(version)
        return InUnits(policy_from_dict(found.policy), self.world.scale_T / scale_by_scenario(found)[SCENARIO])

    def _make(self, number: int) -> Outcomes:
        pointer = self.store.pointer() or Pointer(0, 1.0, 0, 0)
        stable = pointer.version if pointer.share == 1 else pointer.previous
        start_ms = 1_000 * self.batch * number
        parts = [
            self.world.explored(
                self.batch, self.policy(stable), EXPLORE, seed=10 * number, version=stable, start_ms=start_ms
            )
        ]
        for lane, version in enumerate({stable, pointer.version}, start=1):
            parts.append(self._plain(version, 10 * number + lane, start_ms))
        return concat(parts)

    def _plain(self, version: int, seed: int, start_ms: int) -> Outcomes:
        """Returns requests that were not explored."""
        requests = self.world.scored.requests(self.batch, seed=seed)
        weights_NT = self.policy(version).weights(contexts_of(requests))
        outcomes = self.world.served(
            requests, weights_NT, weights_NT, np.full(self.batch, np.nan), tau=np.nan, truncate=np.nan,
            rng=np.random.default_rng([seed, 9]), version=version, start_ms=start_ms,
        )  # fmt: skip
        if version in self.spoiled:
            outcomes.value_NCA[:] *= 0.5
        return outcomes


def worker_of(loop: ClosedLoop, config: BlenderConfig, folder: Path, letters: list[str] | None = None) -> BlendWorker:
    """Returns a worker on the loop, its clock a second ahead at each look."""
    clock = iter(range(0, 10**9, 1_000))
    world = loop.world
    production = Production(
        static=world.static, scale_T=world.scale_T, tasks=world.scored.config.actions, schema_hash="s",
        numeric=NUMERIC,
    )  # fmt: skip
    parts = BlendParts(
        source=loop, store=loop.store, decode=loop.decode, executor=AtOnce(), checkpoint=folder / "blender.json",
        dead_letter=lambda message, error: (letters if letters is not None else []).append(error),
        now_ms=lambda: next(clock), rolled_back_snapshots=set,
    )  # fmt: skip
    return BlendWorker(config, production, parts)
