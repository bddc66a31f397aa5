"""The blend worker where something fails half-way: what was found is neither lost nor done twice."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank import blend_worker
from freshrank.blend_step import Learned, Production
from freshrank.blend_worker import BlendParts, BlendWorker
from model.source import ExampleMessage
from tests.utility_blender.some_outcomes import TASKS, some_outcomes
from tests.utility_blender.some_versions import some_version
from utility_blender.blend import BlenderConfig
from utility_blender.exceptions import BlenderUnavailableError
from utility_blender.gate import Decision
from utility_blender.guard import GuardConfig
from utility_blender.ope_report import OpeReport
from utility_blender.outcomes import Outcomes
from utility_blender.policy import StaticPolicy
from utility_blender.reward import RewardConfig
from utility_blender.rounds import RoundsConfig
from utility_blender.store import MemoryBlenderStore, Pointer

WEIGHTS_T = np.array([1.0, 5.0])


class Script:
    """A source: one batch of outcomes per poll, then nothing."""

    def __init__(self, batches: Sequence[Outcomes]) -> None:
        self.batches = list(batches)
        self._next = 0

    def partitions(self) -> list[int]:
        return [0]

    def finished(self) -> list[int]:
        return []

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._next = offsets.get(0, 0)

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        if self._next == len(self.batches):
            return []
        self._next += 1
        return [ExampleMessage(0, self._next - 1, str(self._next - 1).encode())]


class AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Flaky(MemoryBlenderStore):
    """Fails once where it is told to: before the act, or after it, when only the answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, str] = {}

    def _once(self, name: str, act: Callable[[], Any]) -> Any:
        how = self.fails.pop(name, "")
        if how == "before":
            raise BlenderUnavailableError("gone")
        result = act()
        if how == "after":
            raise BlenderUnavailableError("answer lost")
        return result

    def put(self, version: Any) -> None:
        self._once("put", lambda: super(Flaky, self).put(version))

    def promote(self, version: int, *, share: float, epoch: int) -> bool:
        return bool(self._once("promote", lambda: super(Flaky, self).promote(version, share=share, epoch=epoch)))

    def reject(self, version: Any, reasons: Sequence[str]) -> None:
        self._once("reject", lambda: super(Flaky, self).reject(version, reasons))

    def rollback(self, to_version: int, reason: str) -> list[int]:
        return list(self._once("rollback", lambda: super(Flaky, self).rollback(to_version, reason)))

    def set_exploration(self, is_on: bool, reason: str) -> None:
        self._once("set_exploration", lambda: super(Flaky, self).set_exploration(is_on, reason))


def outcomes(num: int, *, version: int = 0, explored: bool = True, seed: int = 0, clicks: float = 0.3) -> Outcomes:
    made = some_outcomes(num, seed=seed, version=version, first_ms=1_000_000 * seed)
    made.value_NCA[:, :, :] = 0.0
    made.value_NCA[:, 0, 0] = np.random.default_rng([seed, version]).random(num) < clicks
    if not explored:
        made.log_density_N[:] = np.nan
    return made


def worker_of(
    store: MemoryBlenderStore, batches: Sequence[Outcomes], folder: Path, *, denied: Callable[[], set[int]] = set
) -> BlendWorker:
    source, clock = Script(batches), iter(range(0, 10**9, 1_000))
    production = Production(
        static=StaticPolicy({"home": WEIGHTS_T, "search": WEIGHTS_T}),
        scale_T=np.ones(2),
        tasks=TASKS,
        schema_hash="s",
        numeric=(),
    )
    config = BlenderConfig(
        reward=RewardConfig(values={"click": 1.0}),
        guard=GuardConfig(alpha=0.01),
        rounds=RoundsConfig(requests=500, most_requests=1_000, stages=(0.01, 0.1, 1.0), stage_requests=400),
    )
    parts = BlendParts(
        source=source,
        store=store,
        decode=lambda value: source.batches[int(value)],
        dead_letter=lambda message, error: None,
        executor=AtOnce(),
        checkpoint=folder / "blender.json",
        now_ms=lambda: next(clock),
        rolled_back_snapshots=denied,
    )
    return BlendWorker(config, production, parts)


def finds(monkeypatch: pytest.MonkeyPatch, *, passed: bool = True) -> list[tuple[Outcomes, Outcomes]]:
    """Has every round find the next version; returns what each was given."""
    given: list[tuple[Outcomes, Outcomes]] = []

    def learn(earlier: Outcomes, later: Outcomes, *_: Any, number: int, **__: Any) -> Learned:
        given.append((earlier, later))
        gate: Mapping[str, Any] = {"passed": passed, "reasons": [], "rules": []}
        report = OpeReport(num_requests=9, replayed=1.0, densities=1.0, negative=(), groups=())
        decision = Decision(passed, () if passed else ("no",), ())
        version = some_version(number, gate=gate)
        return Learned(version=version, decision=decision, evaluation=report, fit_report={})

    monkeypatch.setattr(blend_worker, "learn", learn)
    return given


def run(worker: BlendWorker, num: int) -> None:
    for _ in range(num):
        worker.run_once()


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("step", ["put", "promote"])
def test_a_version_is_not_lost_with_the_stores_answer(
    step: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, store = finds(monkeypatch), Flaky()
    store.fails = {step: how}
    worker = worker_of(store, [outcomes(600)], tmp_path)
    run(worker, 6)
    assert store.pointer() == Pointer(1, 0.01, 0, 0)
    assert (len(given), worker.stats.versions_promoted, worker.stats.store_unavailable) == (1, 1, 1)


def test_a_refused_version_is_kept_though_the_store_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, passed=False)
    store = Flaky()
    store.fails = {"reject": "before"}
    worker = worker_of(store, [outcomes(600)], tmp_path)
    run(worker, 6)
    assert [found.version.version for found in store.rejected()] == [1]
    assert worker.stats.versions_rejected == 1


def test_what_nobody_foresaw_in_a_fit_ends_the_round_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def learn(*_: Any, **__: Any) -> Learned:
        raise KeyError("shop")

    monkeypatch.setattr(blend_worker, "learn", learn)
    worker = worker_of(Flaky(), [outcomes(600), outcomes(100, seed=1)], tmp_path)
    run(worker, 4)
    assert (worker.stats.rounds_failed, worker.stats.outcomes) == (1, 700)
    assert "KeyError" in caplog.text  # with its trace


def test_requests_of_a_snapshot_that_is_rolled_back_later_are_not_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, denied = finds(monkeypatch), set[int]()
    batches = [outcomes(300, seed=seed) for seed in range(2)]
    batches[0].snapshot_N[:200] = 7
    worker = worker_of(Flaky(), batches, tmp_path, denied=lambda: denied)
    run(worker, 1)
    denied.add(7)
    run(worker, 2)
    assert [set(part.snapshot_N.tolist()) for part in given[0]] == [{1}, {1}]
    assert sum(part.num_requests for part in given[0]) == 400


def test_exploration_is_switched_off_though_the_store_was_away_when_it_tripped(tmp_path: Path) -> None:
    store = Flaky()
    store.set_exploration(True, "test")
    store.fails = {"set_exploration": "before"}
    batches = [outcomes(450, clicks=0.1), outcomes(450, explored=False, clicks=0.6, seed=1)]
    worker = worker_of(store, batches, tmp_path)
    run(worker, 5)
    assert not store.exploration()
    assert (worker.stats.exploration_trips, worker.stats.store_unavailable) == (1, 1)


def on_trial(share: float) -> Flaky:
    store = Flaky()
    store.next_version()
    store.put(some_version())
    store.promote(1, share=share, epoch=0)
    return store


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_version_on_trial_is_taken_back_though_the_store_was_away(how: str, tmp_path: Path) -> None:
    store = on_trial(0.01)
    store.fails = {"rollback": how}
    batches = [
        outcomes(450, explored=False, clicks=0.6),
        outcomes(450, version=1, explored=False, clicks=0.1, seed=1),
    ]
    run(worker_of(store, batches, tmp_path), 5)
    pointer = store.pointer()
    assert pointer is not None and (pointer.version, pointer.share, store.denied()) == (0, 1.0, {1})


def test_a_rollback_that_somebody_else_has_made_meanwhile_is_no_error(tmp_path: Path) -> None:
    store = on_trial(1.0)
    store.next_version()
    store.put(some_version(2, base=1))
    store.promote(2, share=0.01, epoch=0)
    batches = [
        outcomes(450, version=1, explored=False, clicks=0.6),
        outcomes(450, version=2, explored=False, clicks=0.1, seed=1),
    ]
    worker = worker_of(store, batches, tmp_path)
    run(worker, 1)
    worker._look_due_ms = 10**9  # it has not looked since
    store.rollback(0, "by hand")
    run(worker, 3)
    assert (store.rollbacks(), worker.stats.rollbacks, worker.gauges.version) == (["2 -> 0: by hand"], 0, 0)


def test_every_stage_of_a_trial_takes_requests_of_its_own(tmp_path: Path) -> None:
    store = on_trial(0.01)
    batches = [outcomes(250, version=1, explored=False, seed=seed) for seed in range(4)]
    worker = worker_of(store, batches, tmp_path)
    shares = []
    for _ in range(6):
        worker.run_once()
        pointer = store.pointer()
        shares.append(pointer.share if pointer else None)
    assert shares == [0.01, 0.1, 0.1, 1.0, 1.0, 1.0]  # at 500 and at 1,000 requests, not with two looks after 500
