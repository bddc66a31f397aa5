"""The off-policy gate: may these weights serve? All rules must hold, in every group of scenarios.

Each rule catches what the others let pass. Missing support hides behind self-normalised estimates and shows in the mean
weights and in what is uncovered; a broken density shows in the mean weight of the centre; noise in the lower bound; a
model that knows better in the upper ones (design of the blender, section 9). Departure: the model and the
doubly robust estimate may not contradict, their upper bounds are above 0, where the design wants their lifts above 0
and a lower bound too. With the model's own error they are known three times less well than item inclusion: at 6,000
requests their sign is wrong for one good policy in eight, and their lower bound refuses most.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from utility_blender.gate_config import GateConfig
from utility_blender.ope_report import GroupReport, OpeReport

_OWN_MEAN = "lift over its own mean weights"
Verdict = Literal["passed", "failed", "not judged"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and what became of it."""

    name: str
    """What is judged, with the group in front."""
    value: float | None
    """None where there is no figure."""
    limit: str
    """What the figure had to be."""
    verdict: Verdict

    def __str__(self) -> str:
        """Returns one line with the figure and the threshold."""
        return f"{self.name}: {'no figure' if self.value is None else format(self.value, '.4g')}; must be {self.limit}"


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict with every rule behind it."""

    passed: bool
    reasons: tuple[str, ...]
    """A line per failed rule; empty if all passed."""
    rules: tuple[Rule, ...]

    @property
    def failed(self) -> tuple[Rule, ...]:
        """Returns the rules that do not hold."""
        return tuple(rule for rule in self.rules if rule.verdict == "failed")

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON."""
        return asdict(self)


def decide(report: OpeReport, config: GateConfig) -> Decision:
    """Returns whether the policy may serve: only if no rule failed, and enough requests were there to judge."""
    rules = [*_of_log(report, config)]
    for group in report.groups:
        rules += _of_group(group, report, config)
    reasons = tuple(str(rule) for rule in rules if rule.verdict == "failed")
    return Decision(not reasons and bool(report.groups), reasons, tuple(rules))


def _of_log(report: OpeReport, config: GateConfig) -> Iterator[Rule]:
    yield _at_least("explored requests", report.num_requests, config.min_requests)
    if report.num_requests:
        yield _at_least("share of requests that replay to their logged slate", report.replayed, 1.0)
        yield _at_least("share of requests with the density of their law", report.densities, 1.0)


def _of_group(group: GroupReport, report: OpeReport, config: GateConfig) -> Iterator[Rule]:
    at = group.name
    low, high = 1 - config.mean_weight_off, 1 + config.mean_weight_off
    for name, weight in group.mean_weights.items():
        limit = f"in [{low:.4g}, {high:.4g}], or not further off than its own error"
        yield _rule(f"{at}: mean weight, {name}", weight.value, limit, weight.low <= high and weight.high >= low)
    yield _at_least(f"{at}: effective share of requests", group.ess, config.min_ess)
    yield _at_most(f"{at}: share of its slates never explored", group.uncovered, config.max_uncovered)
    yield _above(f"{at}: upper bound of the lift, model", group.dm + group.dr.high - group.dr.value)
    yield _above(f"{at}: upper bound of the lift, doubly robust", group.dr.high)
    yield _above(f"{at}: lift, item inclusion", group.item.value)
    yield _above(f"{at}: lower bound of the lift, item inclusion", group.item.low)
    most, most_p95 = config.max_angle * group.angle_explored, config.max_angle_p95 * group.angle_explored
    yield _at_most(f"{at}: median angle to the centre, degrees", group.angle, most)
    yield _at_most(f"{at}: 95th percentile of the angle, degrees", group.angle_p95, most_p95)
    if group.static_mean is None:
        yield Rule(f"{at}: {_OWN_MEAN}", None, "above 0", "not judged")
    else:
        yield _above(f"{at}: {_OWN_MEAN}", group.static_mean.value)
    yield from _of_actions(group, report, config)


def _of_actions(group: GroupReport, report: OpeReport, config: GateConfig) -> Iterator[Rule]:
    for scope, actions in group.actions.items():
        for action, loss in config.guarded.items():
            name = f"{scope}: bound of the relative lift of {action}"
            if action not in actions:
                yield Rule(name, None, "known", "not judged")
            elif action in report.negative:
                yield _at_most(name, actions[action].high, loss)
            else:
                yield _at_least(name, actions[action].low, -loss)


def _rule(name: str, value: float, limit: str, holds: bool) -> Rule:
    return Rule(name, float(value), limit, "passed" if holds else "failed")


def _at_least(name: str, value: float, limit: float) -> Rule:
    return _rule(name, value, f"at least {limit:.4g}", value >= limit)


def _at_most(name: str, value: float, limit: float) -> Rule:
    return _rule(name, value, f"at most {limit:.4g}", value <= limit)


def _above(name: str, value: float) -> Rule:
    return _rule(name, value, "above 0", value > 0)
