"""What `freshrank up` says: a line per second, a table at the end, and `report.json`. Pure: state in, text out."""

from collections.abc import Iterator, Mapping
from typing import Any

from freshrank.probe import ProbeFacts

State = Mapping[str, Any]
"""Answer of the monitor's `/api/state`."""


def status_line(seconds: float, state: State | None, memory_bytes: int | None) -> str:
    """Returns one line on how the run is doing; a dash for what is not known yet."""
    if state is None:
        return f"{seconds:4.0f} s  starting"
    task = state["schema"]["tasks"][0]
    quality, freshness = state["quality"][task]["all"], state["freshness"]
    down = [process["name"] for process in state["processes"] if not process["up"]]
    parts = [
        f"{seconds:4.0f} s",
        f"v{number(state['model']['version'], 0)}",
        f"fresh p50 {number(freshness['p50_ms'], 0)} p99 {number(freshness['p99_ms'], 0)} ms",
        f"NE {task} {number(quality['ne'], 3)} AUC {number(quality['auc'], 3)}",
        f"lift {number(times(state['lift']['share'], 100), 0)} %",
        f"{number(state['flow']['events_per_s'], 0)} events/s",
        f"{number(times(memory_bytes, 2**-30), 2)} GiB",
    ]
    return "  ".join(parts + ([f"not answering: {', '.join(down)}"] if down else []))


def run_report(
    state: State,
    facts: ProbeFacts | None,
    *,
    started_ms: int,
    ended_ms: int,
    peak_memory_bytes: int | None,
    restarts: int,
) -> dict[str, Any]:
    """Returns `report.json`: the figures of a run, null for what was not measured."""
    seen = facts or ProbeFacts()
    return {
        "seconds": (ended_ms - started_ms) / 1_000,
        "learned": learned(state, facts, started_ms),
        "examples": whole(state["examples"]),
        "join": {name: whole(count) for name, count in state["join"].items()},
        "tasks": state["quality"],
        "steps": whole(state["model"]["steps"]),
        "snapshots": whole(state["model"]["snapshots"]),
        "versions": {"served": whole(state["model"]["version"]), "learned_own_click": seen.learned_version},
        "freshness_ms": {"p50": state["freshness"]["p50_ms"], "p99": state["freshness"]["p99_ms"],
                         "n": whole(state["freshness"]["n"])},
        "stages_ms": state["stages"],
        "events_per_s": state["flow"]["events_per_s"],
        "lift": state["lift"],
        "time_to_first_changed_ranking_s": times(since(seen.changed_ms, started_ms), 1e-3),
        "memory_bytes": peak_memory_bytes,
        "restarts": restarts,
        "processes": {process["name"]: process for process in state["processes"]},
        "config_hash": state["config_hash"],
    }  # fmt: skip


def learned(state: State, facts: ProbeFacts | None, started_ms: int) -> bool:
    """Tells whether a ranking was really served by a snapshot trained from this run's own events.

    Two facts must agree: the ranker measured the freshness of actions (it scored a request with a version that was the
    first to know them), and the probe, which clicked in this run, got a ranking from a version past its click. Where no
    users are simulated there is no probe, and the first fact must do.
    """
    if facts is None:
        return (state["freshness"]["n"] or 0) > 0
    is_own = facts.clicked_ms is not None and facts.clicked_ms >= started_ms
    return is_own and facts.learned_version is not None and (state["freshness"]["n"] or 0) > 0


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table at the end of a run."""
    yield f"{'scenario':<12}" + "".join(f"{task:>10} NE{'calib.':>8}{'AUC':>7}{'rows':>10}" for task in report["tasks"])
    for scenario in next(iter(report["tasks"].values())):
        cells = (
            f"{number(q['ne'], 3):>13}{number(q['calibration'], 2):>8}{number(q['auc'], 3):>7}{number(q['n'], 0):>10}"
            for q in (figures[scenario] for figures in report["tasks"].values())
        )
        yield f"{scenario:<12}" + "".join(cells)
    fresh, lift = report["freshness_ms"], times(report["lift"]["share"], 100)
    counts = [number(report[name], 0) for name in ("examples", "steps", "snapshots")]
    changed_s = report["time_to_first_changed_ranking_s"]
    yield ""
    yield "examples   {} in {} steps, {} snapshots".format(*counts)
    yield f"events     {number(report['events_per_s'], 0)} per second"
    p50, p99, n = (number(fresh[name], 0) for name in ("p50", "p99", "n"))
    yield f"freshness  p50 {p50} ms, p99 {p99} ms over {n} actions"
    yield f"lift       {number(lift, 0)} % of what an oracle would gain over a random order"
    yield f"memory     {number(times(report['memory_bytes'], 2**-30), 2)} GiB resident at most, all processes"
    yield f"change     {number(changed_s, 1)} s from the start to the first ranking changed by a learned click"
    if report["restarts"]:
        yield f"restarts   {report['restarts']}: see the logs"


def number(value: float | None, digits: int) -> str:
    """Returns a number with so many digits, thousands apart; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def times(value: float | None, factor: float) -> float | None:
    """Returns the product; None stays None."""
    return None if value is None else value * factor


def whole(value: float | None) -> int | None:
    """Returns a count as the integer it is; None stays None."""
    return None if value is None else round(value)


def since(end_ms: int | None, start_ms: int) -> int | None:
    """Returns the time between; None if it has not ended."""
    return None if end_ms is None else end_ms - start_ms
