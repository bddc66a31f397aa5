"""Weights that harm, with a forged verdict, through a real Redis: the guard takes them back, and rankers follow.

The worker and the rankers' follower are the real ones; users are simulated, and turn away.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freshrank.study_blender_world import NUMERIC, SCENARIO, World, world_of
from ranker.blender_follow import BlenderFollower, BlenderWatcher
from ranker.stats import RankerStats
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from tests.conftest import WaitUntil
from tests.freshrank.closed_blend import EXPLORE, ClosedLoop, worker_of
from tests.utility_blender.some_versions import some_version
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.exceptions import PromotionError
from utility_blender.learn_config import LearnConfig
from utility_blender.outcomes import Outcomes, concat
from utility_blender.rounds import RoundsConfig
from utility_blender.store import BlenderStoreConfig
from utility_blender.store_redis import RedisBlenderStore
from utility_blender.version import BlenderVersion

pytestmark = pytest.mark.integration
FORGED = {"passed": True, "reasons": [], "rules": []}


@pytest.fixture
def store(redis_server: str, request: pytest.FixtureRequest) -> Iterator[RedisBlenderStore]:
    opened = RedisBlenderStore(redis_server, "main", BlenderStoreConfig(prefix=f"test:{request.node.name}"))
    yield opened
    opened.close()


def harmful(world: World, number: int) -> BlenderVersion:
    """Returns production's weights upside down: what was worth most is worth least."""
    tasks = world.scored.config.actions
    weights_T = world.static.weights_of[SCENARIO][::-1] * [1.0 if n % 2 else -1.0 for n in range(len(tasks))]
    return some_version(
        number,
        gate=FORGED,
        tasks=tasks,
        scale={SCENARIO: dict(zip(tasks, world.scale_T.tolist(), strict=True))},
        policy={"kind": "learned", "tasks": list(tasks), "base": {SCENARIO: weights_T.tolist()}, "links": []},
    )


class WithHoldout(ClosedLoop):
    """As rankers do, it keeps some users on the production weights while others serve."""

    def _make(self, number: int) -> Outcomes:
        pointer = self.store.pointer()
        made = super()._make(number)
        if pointer is None or pointer.version == 0 or pointer.share < 1:
            return made
        return concat([made, self._plain(0, 10 * number + 5, 1_000 * self.batch * number)])


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["trial", "everybody"])
def test_forged_weights_whose_users_turn_away_are_rolled_back_and_rankers_follow(
    store: RedisBlenderStore, tmp_path: Path, wait_until: WaitUntil, share: float
) -> None:
    world = world_of(ScoredWorld(ScoredWorldConfig(), seed=0))
    loop = WithHoldout(world, store, batch=200)
    tasks, static_T = world.scored.config.actions, world.static.weights_of[SCENARIO]
    config = BlenderConfig(
        weights={"default": dict(zip(tasks, static_T.tolist(), strict=True))},
        explore=EXPLORE,
        reward=world.reward,
        learn=LearnConfig(method="static_mean", context=(*NUMERIC, "context.mood")),
        rounds=RoundsConfig(requests=10**6, most_requests=10**6, stages=(0.1, 1.0), stage_requests=10**6),
    )
    blender, stats = Blender(tasks, (SCENARIO,), config, time.monotonic, lambda: 0.0), RankerStats()
    follower = BlenderFollower(store, blender, stats, schema_hash="s", elapsed_s=time.monotonic)
    watcher, worker = BlenderWatcher(follower, stats), worker_of(loop, config, tmp_path)
    number = store.next_version()
    store.put(harmful(world, number))
    store.promote(number, share=share, epoch=0)
    watcher.start()
    try:
        wait_until(lambda: blender.lanes.version == number, "the ranker serves the harmful weights")
        messages = 0
        while not store.denied():
            assert messages < 60, "the guard has not seen it"
            worker.run_once()
            messages += 1
        wait_until(lambda: blender.lanes.version == 0, "the ranker serves production again", timeout_s=2.0)
        assert {blender.weights(SCENARIO, f"r-{n}").version for n in range(100)} == {0}
    finally:
        watcher.stop()
    assert store.denied() == {number} and worker.stats.rollbacks == 1
    assert "per request of" in store.rollbacks()[0]
    with pytest.raises(PromotionError, match="was rolled back"):
        store.promote(number, share=1.0, epoch=1)
