"""The blend worker in a closed loop with known truth: it gains, in rounds, and what harms does not last."""

import dataclasses
from pathlib import Path

import pytest

from freshrank import blend_checkpoint
from freshrank.blend_worker import BlendWorker
from freshrank.study_blender_world import NUMERIC, World, judge_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from tests.freshrank.closed_blend import EXPLORE, ClosedLoop, worker_of
from utility_blender.blend import BlenderConfig
from utility_blender.learn_config import LearnConfig
from utility_blender.rounds import RoundsConfig
from utility_blender.store import MemoryBlenderStore, Pointer

ROUNDS = RoundsConfig(requests=10_000, most_requests=20_000, stages=(0.1, 1.0), stage_requests=500)


def given_world() -> World:
    return world_of(ScoredWorld(ScoredWorldConfig(), seed=0))


def config_of(world: World, **sections: object) -> BlenderConfig:
    learn = LearnConfig(
        method="reward_regression", context=(*NUMERIC, "context.mood"), penalties=(0.1, 0.03, 0.01, 0.003)
    )
    given = {"explore": EXPLORE, "reward": world.reward, "learn": learn, "rounds": ROUNDS} | sections
    return BlenderConfig(**given)  # type: ignore[arg-type]


def until(worker: BlendWorker, holds: object, most: int = 400) -> None:
    """Runs the worker's loop until something holds."""
    for _ in range(most):
        if holds():  # type: ignore[operator]
            return
        worker.run_once()
    raise AssertionError(f"never came true; stats={worker.stats}, gauges={worker.gauges}")


def test_what_it_learns_is_on_trial_first_and_worth_more(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    loop = ClosedLoop(world, store)
    worker = worker_of(loop, config_of(world), tmp_path)
    seen: list[Pointer] = []

    def serves_everybody() -> bool:
        pointer = store.pointer()
        if pointer is not None and pointer not in seen:
            seen.append(pointer)
        return bool(store.versions())

    until(worker, serves_everybody)
    assert [pointer.share for pointer in seen] == [0.1, 1.0]
    version = store.get(store.versions()[0])
    assert judge_of(world, 4_000, seed=123_456).oracle_share(loop.policy(version.version)) > 0.15
    assert (version.base_version, version.passed, version.num_outcomes) == (0, True, 10_000)
    assert worker.gauges.lift is not None and worker.gauges.lift > 0
    until(worker, lambda: worker.gauges.version == version.version and worker.gauges.round_requests > 0)


def test_a_killed_worker_goes_on_from_the_rounds_first_offset(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    loop = ClosedLoop(world, store)
    worker = worker_of(loop, config_of(world), tmp_path)
    until(worker, lambda: worker.gauges.version and worker.gauges.share == 1)
    until(worker, lambda: worker.gauges.round_requests >= 2_000)
    checkpoint = blend_checkpoint.load(tmp_path / "blender.json")
    assert checkpoint is not None and checkpoint.version == store.versions()[0] and checkpoint.offsets[0] > 0

    num_read = len(loop.made)
    again = worker_of(loop, config_of(world), tmp_path)
    again.run(iter([False] * (num_read - checkpoint.offsets[0]) + [True]).__next__)
    assert again.gauges.round_requests == worker.gauges.round_requests


def test_a_version_whose_users_turn_away_is_rolled_back_and_denied(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    loop = ClosedLoop(world, store)
    loop.spoiled = {1}
    worker = worker_of(loop, config_of(world, rounds=dataclasses.replace(ROUNDS, stage_requests=100_000)), tmp_path)
    until(worker, store.denied)
    assert (store.pointer(), store.versions()) == (Pointer(0, 1.0, 1, 0), [])
    assert "per request of home" in store.rollbacks()[0]


def test_what_the_gate_refuses_is_kept_for_inspection_and_never_served(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    loop = ClosedLoop(world, store)
    config = config_of(world)
    strict = dataclasses.replace(config.gate, max_angle=0.01)
    worker = worker_of(loop, dataclasses.replace(config, gate=strict), tmp_path)
    until(worker, store.rejected)
    assert store.pointer() is None and worker.stats.versions_rejected == 1
    assert any("angle" in reason for reason in store.rejected()[0].reasons)


def test_exploration_that_hurts_is_switched_off(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    store.set_exploration(True, "test")
    loop = ClosedLoop(world, store)
    make = loop._make
    loop._make = lambda number: _halved(make(number))  # type: ignore[method-assign]
    worker = worker_of(loop, config_of(world), tmp_path)
    until(worker, lambda: not store.exploration())
    assert worker.stats.exploration_trips == 1 and "against" in store.exploration_reason()


def _halved(outcomes):  # type: ignore[no-untyped-def]
    from utility_blender.rounds import explored

    outcomes.value_NCA[explored(outcomes)] *= 0.5
    return outcomes


def test_garbage_goes_to_the_dead_letters_and_nothing_good_is_lost(tmp_path: Path) -> None:
    world, store = given_world(), MemoryBlenderStore()
    loop, letters = ClosedLoop(world, store), list[str]()
    worker = worker_of(loop, config_of(world), tmp_path, letters)
    poll = loop.poll
    loop.poll = lambda most, ms: [m._replace(value=b"{") for m in poll(most, ms)] + poll(most, ms)  # type: ignore[method-assign]
    until(worker, lambda: worker.stats.malformed == 3)
    assert letters == ["outcomes: cannot be read"] * 3
    assert worker.stats.outcomes == 3 * loop.made[0].num_requests


def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    from utility_blender.exceptions import BlenderUnavailableError

    class Flaky(MemoryBlenderStore):
        is_away = True

        def pointer(self) -> Pointer | None:
            if self.is_away:
                raise BlenderUnavailableError("gone")
            return super().pointer()

    world, store = given_world(), Flaky()
    loop = ClosedLoop(world, MemoryBlenderStore())
    loop_worker = worker_of(loop, config_of(world), tmp_path)
    loop_worker._parts = dataclasses.replace(loop_worker._parts, store=store)
    for _ in range(5):
        loop_worker.run_once()
    assert loop_worker.stats.store_unavailable >= 1
    store.is_away = False
    until(loop_worker, lambda: loop_worker.gauges.round_requests >= 1_000)


def test_a_checkpoint_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "blender.json").write_text("{}")
    with pytest.raises(ValueError, match="is no checkpoint of `freshrank blend`"):
        blend_checkpoint.load(tmp_path / "blender.json")
