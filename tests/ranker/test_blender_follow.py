"""Following the store of learned weights: what serves after each move, and a switch that acts in any trouble."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ranker.blender_follow import LEASE_S, POLL_S, BlenderFollower, BlenderWatcher
from ranker.stats import RankerStats
from tests.ranker.given import redis_process, wait_for
from tests.utility_blender.some_versions import TASKS, some_version
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.exceptions import BlenderUnavailableError
from utility_blender.explore import ExploreConfig
from utility_blender.store import BlenderStoreConfig, MemoryBlenderStore
from utility_blender.store_redis import RedisBlenderStore
from utility_blender.version import BlenderVersion

SCENARIOS = ("home",)


class Moody(MemoryBlenderStore):
    """A store that can fail, and hold bytes that nobody wrote."""

    trouble: Exception | None = None

    def exploration(self) -> bool:
        if self.trouble:
            raise self.trouble
        return super().exploration()

    def tear(self, version: int) -> None:
        self._documents[version] = self._documents[version][:-1]


class Following:
    """A follower with its blender and store, and a clock that stands still."""

    def __init__(self, *, kill_switch: bool = True) -> None:
        self.now_s = 100.0
        explore = ExploreConfig(share=1.0, allow_above_cap=True, kill_switch=kill_switch)
        config = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}}, explore=explore)
        self.blender = Blender(TASKS, SCENARIOS, config, self.clock, lambda: 0.0)
        self.store = Moody()
        self.stats = RankerStats()
        self.follower = BlenderFollower(self.store, self.blender, self.stats, schema_hash="s", elapsed_s=self.clock)

    def clock(self) -> float:
        return self.now_s

    def publish(self, version: int, base: int = 0, share: float = 1.0, **changes: Any) -> None:
        self.store.put(some_version(version, base, **changes))
        pointer = self.store.pointer()
        self.store.promote(version, share=share, epoch=pointer.epoch if pointer else 0)

    def served(self) -> dict[int, float]:
        """Returns the share of requests by version, none of them explored."""
        found = [self.blender.weights("home", f"r-{n}").version for n in range(400)]
        return {version: found.count(version) / len(found) for version in set(found)}

    def round(self) -> None:
        self.follower.round()


def test_without_a_version_production_serves() -> None:
    given = Following()
    given.round()
    assert given.served() == {0: 1.0}
    assert (given.stats.blenders_applied, given.stats.blenders_refused) == (0, {})


def test_it_follows_from_stage_to_stage_and_back() -> None:
    given = Following()
    given.publish(1)
    given.round()
    assert given.served() == {1: 1.0}
    before_T = given.blender.weights("home", "r").weights_T.tobytes()
    given.publish(2, base=1, share=0.5)
    given.round()
    served = given.served()
    assert set(served) == {1, 2} and abs(served[2] - 0.5) < 0.1
    given.store.promote(2, share=1.0, epoch=0)
    given.round()
    assert given.served() == {2: 1.0}
    assert given.blender.weights("home", "r").weights_T.tobytes() != before_T
    given.store.rollback(1, "bad")
    given.round()
    assert given.served() == {1: 1.0}
    assert given.blender.weights("home", "r").weights_T.tobytes() == before_T  # byte-equal
    given.store.rollback(0, "worse")
    given.round()
    assert given.served() == {0: 1.0}
    assert given.blender.weights("home", "r").weights_T.tolist() == [1.0, 5.0]
    assert given.stats.blenders_applied == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_hash": "another"}, "schema"),
        ({"tasks": ("order", "click")}, "schema"),
        ({"policy": {"kind": "pickle"}}, "policy"),
        ({"policy": {"kind": "learned", "tasks": ["click", "order"], "base": {"home": [1]}, "links": []}}, "policy"),
    ],
)
def test_a_version_that_cannot_be_served_leaves_the_one_in_hand(change: dict[str, Any], reason: str) -> None:
    given = Following()
    given.publish(1)
    given.round()
    given.publish(2, base=1, **change)
    given.round()
    given.round()
    assert given.served() == {1: 1.0}
    assert given.stats.blenders_refused == {reason: 2}
    given.store.rollback(1, "cannot be served")
    given.publish(3, base=1)
    given.round()
    assert given.served() == {3: 1.0}


def test_a_torn_version_is_taken_up_once_it_is_whole() -> None:
    given = Following()
    given.publish(1)
    whole = given.store._documents[1]
    given.store.tear(1)
    given.round()
    assert given.served() == {0: 1.0} and given.stats.blenders_refused == {"hash": 1}
    given.store._documents[1] = whole
    given.round()
    assert given.served() == {1: 1.0}


def test_what_was_rolled_back_is_not_served_though_its_successor_cannot_be_read() -> None:
    given = Following()
    given.publish(1)
    given.publish(2, base=1)
    given.round()
    given.store.tear(1)
    given.store.rollback(1, "2 is bad")
    given.round()
    assert given.served() == {0: 1.0}
    assert given.stats.blenders_refused == {"hash": 1}


def test_a_denied_version_is_not_served_even_if_a_pointer_names_it() -> None:
    given = Following()
    given.publish(1)
    given.store._denied.add(1)  # as after a backup was restored over the pointer
    given.round()
    assert given.served() == {0: 1.0} and given.stats.blenders_refused == {"denied": 1}


def test_a_pointer_that_is_gone_is_no_news() -> None:
    given = Following()
    given.publish(1)
    given.round()
    given.store._pointer = None
    given.round()
    assert given.served() == {1: 1.0}


def test_nobody_explores_until_the_switch_is_on_and_after_it_is_off() -> None:
    given = Following()
    assert not given.blender.is_exploring  # before the first look
    given.round()
    assert not given.blender.is_exploring  # absent
    given.store.set_exploration(True, "start")
    given.round()
    assert given.blender.weights("home", "r").explore
    given.store.set_exploration(False, "hides rose")
    given.round()
    assert not given.blender.weights("home", "r").explore


@pytest.mark.parametrize("trouble", [BlenderUnavailableError("away"), RuntimeError("nobody foresaw this")])
def test_an_unreadable_switch_is_off_at_once_and_the_weights_stay(trouble: Exception) -> None:
    given = Following()
    given.publish(1)
    given.store.set_exploration(True, "start")
    given.round()
    assert given.blender.is_exploring
    given.store.trouble = trouble
    with pytest.raises(type(trouble)):
        given.round()
    assert not given.blender.is_exploring
    assert given.served() == {1: 1.0}


def test_a_store_that_hangs_lets_the_lease_run_out_in_two_seconds() -> None:
    given = Following()
    given.store.set_exploration(True, "start")
    given.round()
    given.now_s += LEASE_S - 0.01
    assert given.blender.is_exploring
    given.now_s += 0.01
    assert not given.blender.is_exploring
    assert LEASE_S <= 2.0 and POLL_S <= 1.0


def test_without_the_switch_the_config_alone_decides() -> None:
    given = Following(kill_switch=False)
    given.store.trouble = RuntimeError("nobody asks")
    given.round()
    given.now_s += 1e6
    assert given.blender.is_exploring


def test_a_ranker_with_models_on_trial_never_explores() -> None:
    for kill_switch in (True, False):
        given = Following(kill_switch=kill_switch)
        given.store.set_exploration(True, "start")
        follower = BlenderFollower(
            given.store, given.blender, given.stats, schema_hash="s", elapsed_s=given.clock, may_explore=False
        )
        follower.round()
        assert not given.blender.is_exploring


def constant(weights: list[float], version: int, base: int) -> BlenderVersion:
    policy = {"kind": "learned", "tasks": list(TASKS), "base": {"home": weights}, "links": []}
    return some_version(version, base, policy=policy)


@pytest.mark.integration
def test_the_switch_acts_on_a_running_ranker_also_when_redis_dies() -> None:
    """Through a real Redis and the real thread: on, off, on, and off by its death; weights outlive it."""
    config = BlenderConfig(
        weights={"default": {"click": 1.0, "order": 5.0}},
        explore=ExploreConfig(share=1.0, allow_above_cap=True),
    )
    blender, stats = Blender(TASKS, SCENARIOS, config, busy_s=lambda: 0.0), RankerStats()
    with redis_process() as process:
        store_config = BlenderStoreConfig(timeout_ms=500)
        operator = RedisBlenderStore(process.url, "main", store_config)
        store = RedisBlenderStore(process.url, "main", store_config)
        follower = BlenderFollower(store, blender, stats, schema_hash="s", elapsed_s=blender._elapsed_s)
        watcher = BlenderWatcher(follower, stats)
        watcher.start()
        try:
            operator.put(constant([0.15, 0.05], 1, 0))
            operator.promote(1, share=1.0, epoch=0)
            for is_on in (True, False, True):
                operator.set_exploration(is_on, "test")
                wait_for(lambda is_on=is_on: blender.is_exploring is is_on, f"exploration is {is_on}")
            wait_for(lambda: blender.version == 1, "the version is served")
            process.pause()  # it accepts connections and says nothing
            wait_for(lambda: not blender.is_exploring, "nobody explores while Redis hangs")
            process.resume()
            wait_for(lambda: blender.is_exploring, "exploration goes on")
            process.kill()
            wait_for(lambda: not blender.is_exploring, "nobody explores without Redis")
            wait_for(lambda: stats.blender_store_unavailable >= 2, "outages are counted")
            got = blender.weights("home", "r")
            assert (got.version, got.explore) == (1, False)
            process.start()  # empty: the switch is absent, the pointer is gone
            wait_for(_answers(operator), "Redis answers")
            assert not blender.is_exploring and blender.version == 1
        finally:
            watcher.stop()
            store.close()
            operator.close()
    assert not watcher._thread.is_alive()
    assert np.isfinite(got.weights_T).all()


def _answers(store: RedisBlenderStore) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return store.pointer() is None
        except BlenderUnavailableError:
            return False

    return answers
