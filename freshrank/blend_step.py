"""One round of learning: explored requests to a version of the weights, judged by later requests than it learned from.

1 put the scores on one scale   2 fit on the earlier requests   3 evaluate on the later ones   4 decide
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utility_blender.blend import BlenderConfig
from utility_blender.bounds import Bounded
from utility_blender.contexts import Floats
from utility_blender.evaluate import evaluate
from utility_blender.fit import fit
from utility_blender.gate import Decision, decide
from utility_blender.learned import policy_from_dict, policy_to_dict
from utility_blender.ope_report import OpeReport
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.reward_regression import static_mean
from utility_blender.scale import rescaled, score_scale
from utility_blender.score_shift import score_references
from utility_blender.version import BlenderVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """What the run's configuration says, as far as learning needs it."""

    static: StaticPolicy
    """Production weights, on the scale of `scale_T`."""
    scale_T: Floats
    """What one unit of a score is under the production weights."""
    tasks: tuple[str, ...]
    schema_hash: str
    numeric: tuple[str, ...]
    """Features of the context that are numbers, by their full names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a round found."""

    version: BlenderVersion
    decision: Decision
    evaluation: OpeReport
    fit_report: Mapping[str, Any]


def learn(
    earlier: Outcomes,
    later: Outcomes,
    base: BlenderVersion | None,
    production: Production,
    config: BlenderConfig,
    *,
    number: int,
    now_ms: int,
) -> Learned:
    """Returns the version that the requests explored around `base` (None: the production weights) lead to.

    The scale of the scores is measured once, in the first round, and then frozen: it belongs to the weights. Requests
    of scenarios that the base has no scale for were served production weights and are left out.
    """
    scale_of = score_scale(earlier) if base is None else scale_by_scenario(base)
    earlier, later = (rescaled(_known(part, scale_of), scale_of) for part in (earlier, later))  # 1
    static = StaticPolicy(
        {name: production.static.weights_of[name] * scale_T / production.scale_T for name, scale_T in scale_of.items()}
    )
    center: Policy = static if base is None else policy_from_dict(base.policy)
    fitted = fit(  # 2
        earlier, center, static, config.learn, config.reward, numeric=production.numeric, seed=number
    )
    policy, method = fitted.policy, config.learn.method

    def judge(candidate: Policy) -> tuple[OpeReport, Decision]:
        as_served, now = (Bounded(one, static, config.bounds) for one in (candidate, center))
        evaluation = evaluate(as_served, now, later, config.reward, config.gate, seed=number)  # 3
        return evaluation, decide(evaluation, config.gate)  # 4

    evaluation, decision = judge(policy)
    if decision.failed:
        # What depends on the context takes more data than what does not: its mean may be good where it is only noisy.
        policy, method = static_mean(policy, earlier, static), "static_mean"
        evaluation, decision = judge(policy)
    snapshots_N = np.concatenate([earlier.snapshot_N, later.snapshot_N])
    version = BlenderVersion(
        version=number,
        base_version=0 if base is None else base.version,
        created_ms=now_ms,
        method=method,
        tasks=production.tasks,
        schema_hash=production.schema_hash,
        scale={name: dict(zip(production.tasks, scale_T.tolist(), strict=True)) for name, scale_T in scale_of.items()},
        reward_version=config.reward.version(),
        first_snapshot=int(snapshots_N.min()),
        last_snapshot=int(snapshots_N.max()),
        num_outcomes=len(snapshots_N),
        policy=policy_to_dict(policy),
        gate=_plain({**decision.as_dict(), "evaluation": evaluation.as_dict(), "fit": dict(fitted.report)}),
        reference=score_references(later),
    )
    return Learned(version=version, decision=decision, evaluation=evaluation, fit_report=fitted.report)


def scale_by_scenario(version: BlenderVersion) -> dict[str, Floats]:
    """Returns the frozen scale of a version, scale_T by scenario."""
    return {name: np.array([of_task[task] for task in version.tasks]) for name, of_task in version.scale.items()}


def _plain(data: Any) -> Any:
    """Returns the same data with None for what is not finite: rare actions give such figures, and JSON has none."""
    if isinstance(data, Mapping):
        return {name: _plain(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _known(outcomes: Outcomes, scenarios: Mapping[str, Floats] | Sequence[str]) -> Outcomes:
    return outcomes.take(np.array([name in scenarios for name in outcomes.contexts.scenario], np.bool_))
