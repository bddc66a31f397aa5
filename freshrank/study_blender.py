"""Ways to learn the utility's weights, in worlds whose best weights are known: what each gets of the oracle's lift.

A figure of 0 is production, 1 the oracle `rho * m(x)`. All ways learn from the same explored requests of a world, those
of the first 70 % by time; the gate judges on the rest. `rounds` is the product's loop: explore around the weights in
service, learn, ask the gate, serve. Design: blender.md, sections 4 to 6.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from freshrank.compare_metrics import over_seeds
from freshrank.study_blender_steps import Steps
from freshrank.study_blender_world import MOOD, NUMERIC, Judge, World, judge_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.evaluate import Evaluation
from utility_blender.explore import ExploreConfig
from utility_blender.fit import fit
from utility_blender.gate import decide
from utility_blender.gate_config import GateConfig
from utility_blender.grid_q import LEVELS, main_heads
from utility_blender.learn_config import LearnConfig, PublishedConfig
from utility_blender.outcomes import Outcomes, concat
from utility_blender.policy import Policy
from utility_blender.quadratic_model import fit_quadratic_model
from utility_blender.reward_regression import static_mean

PUBLISHED_TAU = 0.5
"""The published form is given a wider exploration, as in the design's table."""
PENALTIES = (0.1, 0.03, 0.01, 0.006, 0.003, 0.001, 0.0001)
ABLATION_PENALTIES = (0.1, 0.01, 0.003, 0.001)
PUBLISHED_PENALTIES = (2.0, 0.5, 0.1, 0.02, 0.001)
ETAS = (8.0, 16.0, 32.0, 64.0, 128.0)
LEARN = LearnConfig(context=(*NUMERIC, MOOD), penalties=tuple(10.0 ** (-exponent / 4) for exponent in range(4, 13)))
"""Fewer penalties than the default's five decades, to save time: .1 to .001, four per decade."""
_GRID_LEVELS = np.geomspace(0.5, 2.0, LEVELS)
_WORD = {"published_literal": "literal", "published_relabel": "relabel"}
_CURVES = (*_WORD, "clipped", "unclipped", "one_step", "request_credit", "no_centring", "constant_base", "neither")
Progress = Callable[[int, str, float], None]
"""World, what was judged, its share of the oracle's lift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlenderStudyConfig:
    """How much is drawn."""

    worlds: int = 3
    """Worlds, each drawn from a seed of its own; at least 1."""
    requests: int = 50_000
    """Explored requests of a world that each way learns from and is judged on; at least 3,000."""
    rounds: int = 3
    """Gated rounds; at least 1."""
    round_requests: int = 20_000
    """Explored requests of a round; at least 3,000."""
    judged: int = 10_000
    """Requests on which the truth is computed; at least 100."""
    tau: float = 0.3
    """Relative size of the exploration."""
    world: ScoredWorldConfig = field(default_factory=ScoredWorldConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("worlds", 1),
            ("rounds", 1),
            ("requests", 3_000),
            ("round_requests", 3_000),
            ("judged", 100),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


def study_blender(
    config: BlenderStudyConfig, on_progress: Progress = lambda world, name, share: None
) -> dict[str, Any]:
    """Returns the study: `variants`, `curves`, `rounds` and what they were measured in; intervals: 95 %, over worlds.

    `variants.<name>`: `oracle_share` {mean, ci}, `passed` (in how many worlds the gate let it serve; None where it was
    not asked). `curves.<name>`: `x` and `oracle_share`, a {mean, ci} per x. `rounds`: one entry per round.
    """
    worlds = [_World(config, seed, on_progress) for seed in range(config.worlds)]
    found = [world.study() for world in worlds]
    return {
        "settings": {
            "worlds": config.worlds, "requests": config.requests, "rounds": config.rounds,
            "round_requests": config.round_requests, "judged": config.judged, "tau": config.tau,
            "published_tau": PUBLISHED_TAU,
        },
        "oracle_lift": over_seeds([one["oracle_lift"] for one in found]),
        "exploration_cost": over_seeds([one["exploration_cost"] for one in found]),
        "variants": {
            name: {
                "oracle_share": over_seeds([one["variants"][name][0] for one in found]),
                "passed": _count([one["variants"][name][1] for one in found]),
            }
            for name in found[0]["variants"]
        },
        "curves": {
            name: {
                "x": list(found[0]["curves"][name]),
                "oracle_share": [
                    over_seeds([one["curves"][name][x] for one in found]) for x in found[0]["curves"][name]
                ],
            }
            for name in _CURVES
        },
        "rounds": [
            {
                "oracle_share": over_seeds([one["rounds"][place][0] for one in found]),
                "passed": _count([one["rounds"][place][1] for one in found]),
            }
            for place in range(config.rounds)
        ],
    }  # fmt: skip


def rounds(
    world: World, judge: Judge, config: BlenderStudyConfig, *, seed: int, method: LearnConfig | None = None
) -> Iterator[tuple[float, bool]]:
    """Yields after each gated round what the weights in service get of the oracle's lift, and whether the gate passed.

    A refused round goes on: the next one has its requests too, for they were drawn around the same weights.
    """
    learn = method or replace(LEARN, method="reward_regression")
    served: Policy = world.static
    version, log, share = 0, list[Outcomes](), 0.0
    for place in range(config.rounds):
        log.append(
            world.explored(
                config.round_requests, served, ExploreConfig(tau=config.tau), seed=seed + place, version=version,
                start_ms=1_000 * config.round_requests * place,
            )
        )  # fmt: skip
        earlier, later = _split(concat(log))
        fitted = fit(earlier, served, world.static, learn, world.reward, numeric=NUMERIC, seed=seed + place)
        passed = _gate(world, served, earlier, later, seed + place)(fitted.policy)
        if passed:
            served, version, log = fitted.policy, version + 1, []
            share = judge.oracle_share(served)
        yield share, passed


class _World:
    """The study of one world."""

    def __init__(self, config: BlenderStudyConfig, seed: int, on_progress: Progress) -> None:
        self._config, self._seed, self._on_progress = config, seed, on_progress
        scored = ScoredWorld(config.world, seed)
        self._world = world_of(scored)
        self._raw = world_of(scored, scaled=False)
        self._judge = judge_of(self._world, config.judged, seed=1_000 + seed)
        self._learn = LEARN

    def study(self) -> dict[str, Any]:
        config, world, judge = self._config, self._world, self._judge
        log = world.explored(config.requests, world.static, ExploreConfig(tau=config.tau), seed=2_000 + self._seed)
        requests = world.scored.requests(config.requests, seed=2_000 + self._seed)
        served, drawn = (world.values(requests, weights).mean() for weights in (log.center_NT, log.weights_NT))
        del requests
        earlier, later = _split(log)
        curves = dict(self._curves(earlier))
        variants = dict(self._variants(earlier, later))
        published = dict(self._published())
        variants |= {name: (curve[PUBLISHED_PENALTIES[0]], None) for name, curve in published.items()}
        in_rounds = list(rounds(world, judge, config, seed=3_000 + 100 * self._seed))
        for share, _ in in_rounds:
            self._on_progress(self._seed, "rounds", share)
        variants["rounds"] = (in_rounds[-1][0], None)
        return {
            "oracle_lift": judge.oracle_value / judge.static_value - 1,
            "exploration_cost": float(1 - drawn / served),
            "variants": variants,
            "curves": curves | published,
            "rounds": in_rounds,
        }

    def _variants(self, earlier: Outcomes, later: Outcomes) -> Iterator[tuple[str, tuple[float, bool | None]]]:
        """Yields each way to learn: its share, and whether the gate lets it serve."""
        world = self._world
        passes = _gate(world, world.static, earlier, later, self._seed)
        for name in ("reward_regression", "one_step", "quadratic_q", "global"):
            policy = self._fitted(world, earlier, replace(self._learn, method=name))
            yield name, (self._share(name, policy), passes(policy))
            if name == "reward_regression":
                mean = static_mean(policy, earlier, world.static)
                yield "static_mean", (self._share("static_mean", mean), passes(mean))
        heads = main_heads(earlier)
        grid, _ = _split(
            world.explored_on_grid(self._config.requests, world.static, heads, _GRID_LEVELS, seed=4_000 + self._seed)
        )
        once = replace(world.reward, aggregate="binary")
        for name, reward in (("grid_q", world.reward), ("grid_q_once", once)):
            learn = replace(self._learn, method="grid_q")
            policy = fit(grid, world.static, world.static, learn, reward, numeric=NUMERIC, seed=self._seed).policy
            yield name, (self._share(name, policy), None)

    def _curves(self, earlier: Outcomes) -> Iterator[tuple[str, dict[float, float]]]:
        """Yields what steps of one size after the other get, with and without what makes them work."""
        world = self._world
        steps = Steps(earlier, world.static, self._learn, world.reward, numeric=NUMERIC, seed=self._seed)
        clip = self._learn.clip
        yield "clipped", self._curve("clipped", PENALTIES, steps.regression(PENALTIES, clip))
        yield "unclipped", self._curve("unclipped", PENALTIES, steps.regression(PENALTIES, math.inf))
        yield "one_step", self._curve("one_step", ETAS, steps.one_step(ETAS, clip))
        whole = replace(self._learn, credit="request")
        steps = Steps(earlier, world.static, whole, world.reward, numeric=NUMERIC, seed=self._seed)
        found = steps.regression(ABLATION_PENALTIES, math.inf)
        yield "request_credit", self._curve("request_credit", ABLATION_PENALTIES, found)
        for name, ablation in (("no_centring", "centring"), ("constant_base", "base"), ("neither", "both")):
            found = steps.without(ablation, ABLATION_PENALTIES)  # type: ignore[arg-type]
            yield name, self._curve(name, ABLATION_PENALTIES, found)

    def _published(self) -> Iterator[tuple[str, dict[float, float]]]:
        """Yields the published form, hides taken literally and not, for each penalty of its prior; scale 1."""
        raw = self._raw
        explore = ExploreConfig(tau=PUBLISHED_TAU)
        earlier, _ = _split(raw.explored(self._config.requests, raw.static, explore, seed=5_000 + self._seed))
        for name, hide in _WORD.items():
            policies = (
                self._fitted(
                    raw,
                    earlier,
                    replace(
                        self._learn,
                        method="published",
                        published=PublishedConfig(penalty=penalty, hide=hide),  # type: ignore[arg-type]
                    ),
                )
                for penalty in PUBLISHED_PENALTIES
            )
            judge = replace(self._judge, world=raw)
            yield name, self._curve(name, PUBLISHED_PENALTIES, policies, judge)

    def _fitted(self, world: World, outcomes: Outcomes, learn: LearnConfig) -> Policy:
        return fit(outcomes, world.static, world.static, learn, world.reward, numeric=NUMERIC, seed=self._seed).policy

    def _share(self, name: str, policy: Policy, judge: Judge | None = None) -> float:
        share = (judge or self._judge).oracle_share(policy)
        self._on_progress(self._seed, name, share)
        return share

    def _curve(
        self, name: str, x: Sequence[float], policies: Iterator[Policy], judge: Judge | None = None
    ) -> dict[float, float]:
        return {at: self._share(f"{name} {at:g}", policy, judge) for at, policy in zip(x, policies, strict=True)}


def _gate(world: World, served: Policy, earlier: Outcomes, later: Outcomes, seed: int) -> Callable[[Policy], bool]:
    """Returns whether a policy passes the gate on the later requests.

    The reward's model for the doubly robust estimate comes from the earlier ones, which the policy learned from too:
    its own lift is then flattering, but a model of half the slice is so noisy that its sign is chance, and what is
    wrong with it the later requests correct.
    """
    gate = GateConfig()
    q_model = fit_quadratic_model(earlier, world.reward, config=LEARN, numeric=NUMERIC, seed=seed)
    evaluation = Evaluation(served, later, world.reward, gate, seed=seed, q_model=q_model)
    return lambda policy: decide(evaluation.of(policy), gate).passed


def _split(outcomes: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Returns the first 70 % by time, to learn from, and the rest, for the gate."""
    cut = round(0.7 * outcomes.num_requests)
    return outcomes.take(np.arange(cut)), outcomes.take(np.arange(cut, outcomes.num_requests))


def _count(passed: Sequence[bool | None]) -> int | None:
    known = [one for one in passed if one is not None]
    return sum(known) if len(known) == len(passed) else None


def best(curve: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Returns the x of a curve with the largest mean share, and that share."""
    place = int(np.argmax([point["mean"] for point in curve["oracle_share"]]))
    return curve["x"][place], curve["oracle_share"][place]
