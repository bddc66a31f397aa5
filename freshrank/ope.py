"""`freshrank ope`: what other weights would have earned, told from the explored requests of a log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import need_folders, now_ms, run_options, write_results
from freshrank.config import RunConfig

if TYPE_CHECKING:
    from utility_blender.gate import Decision
    from utility_blender.ope_report import OpeReport
    from utility_blender.outcomes import Outcomes
    from utility_blender.policy import Policy
    from utility_blender.power import Plan

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--policy",
    metavar="WEIGHTS",
    help="What to judge: a version of the store (3), static:click=1,order=5, or a JSON file of weights by scenario.",
)
@click.option("--center", type=click.IntRange(min=0), default=0, show_default=True, help="Version explored around.")
@click.option(
    "--latest",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Judge by this latest share of the requests; 0.3 for weights that were learned from this log.",
)
@click.option("--plan", "is_plan", is_flag=True, help="Say how many requests a verdict needs.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of fresh draws and of resampling.")
@click.option("--report", type=_FILE, help="Write an HTML page with verdict, tables and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write all figures as JSON.")
@run_options()
def ope(
    run: RunConfig,
    folder: Path | None,
    policy: str | None,
    center: int,
    latest: float,
    is_plan: bool,
    seed: int,
    report: Path | None,
    json_out: Path | None,
) -> None:
    """Judges weights by explored requests: of the log in FOLDER, recorded or saved, or else of the broker.

    Prints the verdict of the gate and a line per failed rule. Weights are judged against those that were explored
    around: the config's, or a version of the store (--center). Requests of models that were rolled back are left out
    where the broker is read; a folder has no record of them.

    \b
    Example:
      freshrank ope recorded/log --policy static:click=1,order=4 --config configs/demo.yaml --report ope.html
      freshrank ope --plan --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    if policy is None and not is_plan:
        raise click.ClickException("--policy: say what to judge, or --plan how many requests a verdict needs")
    need_folders(report, json_out)
    from freshrank.blend import rolled_back_snapshots
    from freshrank.ope_page import ope_page
    from utility_blender.evaluate import admissible

    try:
        logged = _outcomes(run, folder)
        denied = set() if folder is not None else rolled_back_snapshots(run)()
        logged = logged.take(admissible(logged, denied=denied) & (logged.blender_N == center))
        if not logged.num_requests:
            raise ValueError(f"--center: no request was explored around version {center}")
        logged = _latest(logged, latest)
        result: dict[str, Any] = {"source": str(folder or run.kafka.bootstrap_servers), "policy": policy}
        relative_se = None
        if policy is not None:
            evaluation, decision = _judged(run, logged, policy, center, seed)
            _print_verdict(evaluation, decision)
            result |= {"report": evaluation.as_dict(), "decision": decision.as_dict()}
            if len(evaluation.groups) == 1 and evaluation.groups[0].value_center.value > 0:
                relative_se = evaluation.groups[0].item.se / evaluation.groups[0].value_center.value
        if is_plan or report is not None:
            plan = _plan(run, logged, relative_se or None)
            result["plan"] = plan.as_dict()
            if is_plan:
                _print_plan(plan)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, ope_page, json_out=json_out, report=report)


def _outcomes(run: RunConfig, folder: Path | None) -> "Outcomes":
    from freshrank.ope_source import outcomes_of_folder, outcomes_of_source

    if folder is not None:
        return outcomes_of_folder(folder, run.schema, run.join)
    from freshrank.log_source import ReaderSource
    from stream import kafka_adapter

    reader = kafka_adapter.reader(run.kafka)
    try:
        return outcomes_of_source(ReaderSource(reader, run.kafka, now_ms), run.schema)
    finally:
        reader.close()


def _latest(logged: "Outcomes", share: float) -> "Outcomes":
    import numpy as np

    order = np.argsort(logged.ts_ms_N, kind="stable")
    return logged.take(order[round((1 - share) * len(order)) :])


def _judged(run: RunConfig, logged: "Outcomes", policy: str, center: int, seed: int) -> "tuple[OpeReport, Decision]":
    """Returns figures and verdict, with scores on the scale that learning uses: that of the version, or measured."""
    from freshrank.blend import production
    from freshrank.blend_step import scale_by_scenario
    from utility_blender.bounds import Bounded
    from utility_blender.evaluate import evaluate
    from utility_blender.gate import decide
    from utility_blender.learned import policy_from_dict
    from utility_blender.policy import StaticPolicy
    from utility_blender.scale import rescaled, score_scale

    config, made = run.blender, production(run)
    version = _version(run, int(policy)) if policy.isdigit() else None
    base = _version(run, center) if center else None
    scale_of = scale_by_scenario(version or base) if version or base else score_scale(logged)  # type: ignore[arg-type]
    if missing := sorted(set(logged.contexts.scenario) - set(scale_of)):
        raise ValueError(f"--policy: version {policy} has no scale for {', '.join(missing)}")
    factor_of = {name: scale_T / made.scale_T for name, scale_T in scale_of.items()}
    static = StaticPolicy({name: made.static.weights_of[name] * factor for name, factor in factor_of.items()})
    candidate: Policy
    if version is not None:
        candidate = Bounded(policy_from_dict(version.policy), static, config.bounds)
    else:
        given = _given(policy, run)
        candidate = StaticPolicy({name: given(name) * factor for name, factor in factor_of.items()})
    now: Policy = Bounded(policy_from_dict(base.policy), static, config.bounds) if base else static
    report = evaluate(candidate, now, rescaled(logged, scale_of), config.reward, config.gate, seed=seed)
    return report, decide(report, config.gate)


def _version(run: RunConfig, number: int) -> Any:
    from utility_blender.store_redis import RedisBlenderStore

    store = RedisBlenderStore(run.redis.address, run.trainer.model_name, run.blender.store)
    try:
        return store.get(number)
    finally:
        store.close()


def _given(policy: str, run: RunConfig) -> Any:
    """Returns the function from scenario to weights_T that an argument stands for."""
    from dataclasses import replace

    from utility_blender.blend import DEFAULT, Blender

    weights: Mapping[str, Mapping[str, float]]
    if policy.startswith("static:"):
        weights = {DEFAULT: _pairs(policy.removeprefix("static:"))}
    else:
        try:
            weights = json.loads(Path(policy).read_text(encoding="utf-8"))
            weights = {str(name): {task: float(w) for task, w in of.items()} for name, of in weights.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            known = "a version, static:TASK=WEIGHT,... or a JSON file"
            raise ValueError(f"--policy: {policy} is not allowed; {known}: {error}") from error
    try:
        config = replace(run.blender, weights=weights, explore=replace(run.blender.explore, share=0.0))
        return Blender(tuple(run.schema.tasks), run.schema.scenarios, config).production
    except ValueError as error:
        raise ValueError(f"--policy: {error}") from error


def _pairs(text: str) -> dict[str, float]:
    try:
        return {name: float(weight) for name, _, weight in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise ValueError(f"--policy: static:{text} is not allowed; static:TASK=WEIGHT,TASK=WEIGHT") from error


def _plan(run: RunConfig, logged: "Outcomes", relative_se: float | None) -> "Plan":
    from utility_blender.power import plan
    from utility_blender.reward import request_rewards

    reward_N = request_rewards(logged, run.blender.reward)
    span_ms = int(logged.ts_ms_N.max() - logged.ts_ms_N.min())
    return plan(logged.num_requests, span_ms, float(reward_N.mean()), float(reward_N.std()), relative_se=relative_se)


def _print_verdict(report: "OpeReport", decision: "Decision") -> None:
    click.echo(f"{'passed' if decision.passed else 'refused'}: {report.num_requests} explored requests")
    for group in report.groups:
        value = group.value_center.value
        click.echo(
            f"{group.name}: centre {value:.4g}, lift {group.item.value:+.4g} ({group.item.low:+.4g} to"
            f" {group.item.high:+.4g}) by item inclusion, {group.dr.value:+.4g} ({group.dr.low:+.4g} to"
            f" {group.dr.high:+.4g}) doubly robust; median angle {group.angle:.1f} degrees"
        )
    for reason in decision.reasons:
        click.echo(f"  {reason}")


def _print_plan(plan: "Plan") -> None:
    rate = "" if plan.requests_per_day is None else f", {plan.requests_per_day:,.0f} a day"
    origin = "of this policy" if plan.is_measured else "scaled from our simulation"
    click.echo(
        f"{plan.num_requests:,} explored requests{rate}; reward sd/mean {plan.variation:.2f}; "
        f"error of a lift now {plan.relative_se:.2%} of the value ({origin})"
    )
    click.echo("lift      requests      days   49 arms      9 arms")
    for row in plan.rows:
        days = "-" if row.days is None else f"{row.days:,.1f}"
        click.echo(f"{row.lift:<7.1%} {row.paired:>10,} {days:>9} {row.arms[49]:>11,} {row.arms[9]:>11,}")
