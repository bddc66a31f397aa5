"""A plan as text and as JSON values. Pure: a plan in, lines out."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from freshrank.plan_costs import Costs
from freshrank.plan_lines import Line, failures_as_json, lines_of, size
from freshrank.plan_solve import Plan

_WHAT, _VALUE = 34, 14


def plan_as_json(plan: Plan, costs: Costs, seed: int = 0) -> dict[str, Any]:
    """Returns the plan, every cost it rests on, and what failures do."""
    lines = lines_of(plan, costs)
    names = _names(lines, plan)
    sizes = plan.sizes
    return {
        "load": asdict(plan.load),
        "keeps_promise": plan.freshness is not None,
        "not_built": plan.load.asks_what_if,
        "freshness_ms": None if plan.freshness is None else plan.freshness._asdict(),
        "stages_ms": {stage: {"p50": p50, "p99": p99} for stage, (p50, p99) in plan.stages_ms.items()},
        "with_failures": failures_as_json(plan, costs, seed),
        "settings": settings_of(plan, lines),
        "lines": [asdict(line) | {"is": standing(line, costs)} for line in lines],
        "limits": [asdict(limit) | {"gives_way": limit.gives_way} for limit in plan.limits],
        "training_step_ms": asdict(sizes.job.step) | {"rows_per_s": sizes.job.rows_per_s},
        "costs": {name: {field: getattr(costs.about(name), field) for field in _COST_FIELDS} for name in names},
    }


_COST_FIELDS = ("value", "unit", "kind", "source", "command")


def settings_of(plan: Plan, lines: list[Line]) -> dict[str, int | float]:
    """Returns the settings of the configuration that the plan is for."""
    sizes, load = plan.sizes, plan.load
    partitions = next(line.value for line in lines if line.what == "partitions")
    found: dict[str, int | float] = {
        "kafka.num_partitions": int(partitions),
        "kafka.replication_factor": load.replication,
        "join.commit_interval_ms": load.commit_interval_ms,
        "trainer.batch_rows": sizes.job.batch_rows,
        "trainer.max_wait_ms": load.max_wait_ms,
        "trainer.publish_interval_ms": round(1e3 * sizes.interval_s),
        "trainer.full_every": sizes.full_every,
    }
    if load.judged_share < 1:
        found["trainer.judged_share"] = load.judged_share
    if sizes.rows.hot < sizes.rows.total:
        found["model.embedding.hot_rows"] = sizes.rows.hot
    return found


def standing(line: Line, costs: Costs) -> str:
    """Returns whether a figure was measured, how far it is stretched, and whether a part of it is assumed."""
    if not line.rests_on:
        return "arithmetic"
    found = f"extrapolated x{line.beyond:,.0f}" if line.beyond >= 1.5 else "measured"
    if costs.are_measured(line.rests_on):
        return found
    return f"{found}, part assumed" if found != "measured" else "part assumed"


def plan_text(plan: Plan, costs: Costs, seed: int = 0) -> Iterator[str]:
    """Yields the plan, line by line."""
    lines, load = lines_of(plan, costs), plan.load
    names = _names(lines, plan)
    number = {name: place for place, name in enumerate(names, 1)}
    yield (
        f"{load.events_per_s:,.0f} events/s ({load.slates_per_s:,.0f} slates of {load.slate}), {load.qps:,.0f} "
        f"requests/s, {load.items:,} items, {load.users:,} users, preset {load.preset}"
    )
    if load.asks_what_if:
        yield "WHAT IF: --ranker-cores above 1 asks about something that is not built."
    yield ""
    yield from _promise(plan, costs, seed)
    yield ""
    for line in lines:
        notes = " ".join(str(number[name]) for name in line.rests_on)
        yield f"{line.what:<{_WHAT}}{_shown(line):>{_VALUE}}  {standing(line, costs)} [{notes}]"
        yield f"{'':<{_WHAT + _VALUE}}  {line.how}"
    yield ""
    yield "settings: " + " ".join(f"{name}={value}" for name, value in settings_of(plan, lines).items())
    yield ""
    yield "bounds, the tightest first (1 is the bound):"
    for limit in plan.limits:
        notes = " ".join(str(number[name]) for name in limit.rests_on)
        way = f"; GIVES WAY at about {load.events_per_s / limit.share:,.0f} events/s" if limit.gives_way else ""
        yield f"  {limit.share:6.2f}  {limit.what} [{notes}]{way}: {limit.remedy}"
    yield ""
    yield "rests on:"
    for name in names:
        cost = costs.about(name)
        where = f"{cost.command} ({cost.source})" if cost.kind == "measured" else f"ASSUMED: {cost.source}"
        yield f"  [{number[name]}] {name} {cost.value:g} {cost.unit}: {where}"


def _promise(plan: Plan, costs: Costs, seed: int) -> Iterator[str]:
    if plan.freshness is None:
        yield f"NOT REACHABLE as built: {plan.limits[0].what}. What comes nearest:"
        return
    fresh, load = plan.freshness, plan.load
    beyond = load.events_per_s / costs["reach.whole"]
    yield (
        f"fresh within {1e-3 * fresh.p99:.2f} s (p99; p50 {1e-3 * fresh.p50:.2f}, p99.9 {1e-3 * fresh.p999:.2f}), "
        f"asked: {load.freshness_s:g} s; simulated, the whole was measured at {costs['reach.whole']:,.0f} events/s"
        + (f", {beyond:,.0f} times less" if beyond >= 1.5 else "")
    )
    stages = ", ".join(f"{stage} {p50:.0f} / {p99:.0f}" for stage, (p50, p99) in plan.stages_ms.items())
    yield f"  stages, p50 / p99 in ms: {stages}"
    failures = failures_as_json(plan, costs, seed)
    yield f"  with failures: p99 {1e-3 * failures['p99_ms']:.2f} s, p99.9 {1e-3 * failures['p999_ms']:.2f} s"
    for effect in failures["effects"]:
        yield (
            f"    {effect['broken']} away for {effect['lasts_s']:.1f} s, {effect['per_day']:.2g} times a day: up to "
            f"{1e-3 * effect['longest_ms']:.1f} s, {effect['share']:.3%} of all actions feel it"
        )


def _names(lines: list[Line], plan: Plan) -> list[str]:
    """Returns the costs that are named, each once, in the order of the plan."""
    named = [name for line in lines for name in line.rests_on]
    named += [name for limit in plan.limits for name in limit.rests_on]
    return list(dict.fromkeys(named))


def _shown(line: Line) -> str:
    if line.unit.startswith("bytes"):
        return size(line.value) + line.unit.removeprefix("bytes")
    return f"{line.value:,.0f} {line.unit}".rstrip()
