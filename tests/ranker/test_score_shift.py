"""Scores that move away under learned weights: told, then no longer blended by them, until they are back."""

import numpy as np

from ranker.score_shift import WINDOW, ScoreShift
from ranker.stats import RankerStats
from stream.schema import Candidates, Impression, Items, Served
from tests.utility_blender.some_versions import TASKS, some_version
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.explore import ExploreConfig
from utility_blender.learned import policy_from_dict
from utility_blender.score_shift import ALARM, LIMIT, reference_of
from utility_blender.serving import Lanes, ReadyVersion

RNG = np.random.default_rng(5)


def scores(factor: float = 1.0, num: int = 6) -> dict[str, list[float]]:
    return {task: (RNG.beta(2, 20, num) * factor).tolist() for task in TASKS}


def blender() -> Blender:
    config = BlenderConfig(
        weights={"default": {"click": 1.0, "order": 5.0}}, explore=ExploreConfig(share=0.5, allow_above_cap=True)
    )
    return Blender(TASKS, ("home", "search"), config, busy_s=lambda: 0.0)


def ready(blend: Blender, version: int, *, has_reference: bool = True) -> ReadyVersion:
    reference = {"edges": (made := reference_of(np.array(scores(num=20_000)["click"]))).edges, "shares": made.shares}
    stored = some_version(
        version,
        scale={name: {"click": 0.1, "order": 0.01} for name in ("home", "search")},
        policy={"kind": "learned", "tasks": list(TASKS), "base": {"default": [0.15, 0.05]}, "links": []},
        reference={"home": dict.fromkeys(TASKS, reference)} if has_reference else {},
    )
    return blend.made_ready(stored, policy_from_dict(stored.policy))


def explored(version: int, factor: float) -> Impression:
    """A request of six candidates, half of them shown, whose orders are rated `factor` times as likely as then."""
    shown, rest = scores(num=3), scores(num=3)
    for some in (shown, rest):
        some["order"] = [score * factor for score in some["order"]]
    return Impression(
        request_id="r",
        user_id="u",
        scenario="home",
        ts=0,
        items=Items(id=["a", "b", "c"], scores=shown),
        candidates=Candidates(id=["d", "e", "f"], scores=rest),
        served=Served(blender=version, explore=True),
    )


class Watched:
    """A blender with version 1 in service, and the shift of its scores."""

    def __init__(self, *, has_reference: bool = True) -> None:
        self.blender = blender()
        self.blender.lanes = Lanes(stable=ready(self.blender, 1, has_reference=has_reference))
        self.stats = RankerStats()
        self.shift = ScoreShift(self.blender, self.stats)

    def window(self, factor: float, version: int = 1) -> None:
        for _ in range(WINDOW):
            self.shift.saw("home", explored(version, factor))

    def served(self, scenario: str) -> set[tuple[int, bool, str | None]]:
        got = [self.blender.weights(scenario, f"r-{n}", {}) for n in range(40)]
        return {(one.version, one.explore, one.fallback) for one in got}


def test_calm_scores_change_nothing() -> None:
    given = Watched()
    given.window(1.0)
    assert set(given.shift.psi) == {("home", "click"), ("home", "order")}
    assert max(given.shift.psi.values()) < ALARM
    assert given.stats.score_shift_alarms == 0
    assert given.served("home") == {(1, False, None), (1, True, None)}


def test_a_small_shift_is_told_and_a_large_one_ends_the_learned_weights_there_until_it_is_over() -> None:
    given = Watched()
    given.window(1.35)
    assert ALARM < given.shift.psi["home", "order"] < LIMIT and given.shift.psi["home", "click"] < ALARM
    assert given.stats.score_shift_alarms == 1
    assert given.served("home") == {(1, False, None), (1, True, None)}
    given.window(2.5)
    assert given.shift.psi["home", "order"] > LIMIT
    assert given.served("home") == {(0, False, "shifted"), (1, True, None)}  # explored ones must go on
    assert given.served("search") == {(1, False, None), (1, True, None)}
    given.window(1.0)
    assert given.served("home") == {(1, False, None), (1, True, None)}
    assert given.stats.score_shift_alarms == 2


def test_a_new_version_starts_afresh_with_its_own_reference() -> None:
    given = Watched()
    given.window(2.5)
    given.blender.lanes = Lanes(stable=ready(given.blender, 2))
    assert given.served("home") == {(2, False, None), (2, True, None)}  # from its first request on
    given.shift.saw("home", explored(2, 1.0))
    assert given.shift.psi == {}
    given.window(2.5, version=1)  # requests in flight that were still drawn around the former
    assert given.shift.psi == {}


def test_without_a_reference_or_without_learned_weights_nobody_watches() -> None:
    given = Watched(has_reference=False)
    given.window(2.5)
    assert given.shift.psi == {}
    given.blender.lanes = Lanes()
    given.window(2.5, version=0)
    assert given.shift.psi == {} and given.blender.shifted == frozenset()
