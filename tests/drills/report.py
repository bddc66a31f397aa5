"""What users saw, in numbers and as a table. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tests.drills.load import FEEDBACK, RANK, Reply

PHASES = ("before", "during", "after")
_UNANSWERED = 0


def seen(replies: Sequence[Reply]) -> dict[str, Any]:
    """Returns what a stretch of time was like for its users; latencies in ms, from the time a call was due."""
    ranked = [reply for reply in replies if reply.path == RANK]
    answered = [reply for reply in ranked if reply.status == 200]
    latency_ms = [1_000 * (reply.done_s - reply.due_s) for reply in answered]
    feedback = [reply for reply in replies if reply.path == FEEDBACK]
    return {
        "requests": len(ranked),
        "feedback": len(feedback),
        "unanswered": sum(reply.status == _UNANSWERED for reply in replies),
        "errors": dict(sorted(Counter(str(r.status) for r in replies if r.status >= 400).items())),
        "wrong": sum(bool(reply.problems) for reply in replies),
        "degraded_share": _share(sum(bool(reply.degraded) for reply in answered), len(answered)),
        "degraded": dict(sorted(Counter(reason for reply in answered for reason in reply.degraded).items())),
        "p50_ms": _quantile(latency_ms, 0.5),
        "p99_ms": _quantile(latency_ms, 0.99),
        "max_ms": _quantile(latency_ms, 1.0),
    }


def between(replies: Iterable[Reply], from_s: float, until_s: float) -> list[Reply]:
    """Returns the calls that were due in a stretch of time."""
    return [reply for reply in replies if from_s <= reply.due_s < until_s]


def wrong_answers(replies: Iterable[Reply]) -> list[str]:
    """Returns each sort of mistake once, with how often it was seen."""
    return [f"{what} ({number} times)" for what, number in Counter(p for r in replies for p in r.problems).items()]


def drill_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a table for one drill."""
    recovered = "never" if row["recovered_s"] is None else f"{row['recovered_s']:.1f} s"
    verdict = "ok" if not row["problems"] else "FAILED"
    yield f"{row['name']:<22}{verdict:<8}recovered {recovered:<8} alarm: {first_alarm(row)}"
    if row["missing_until_s"]:
        yield "    until " + ", ".join(f"{after_s:.1f} s: {what}" for what, after_s in row["missing_until_s"].items())
    for phase in PHASES:
        users = row["users"][phase]
        errors = ", ".join(f"{number} x HTTP {status}" for status, number in users["errors"].items()) or "no error"
        yield (
            f"    {phase:<8}{users['requests']:>5} requests  {users['wrong']} wrong  {users['unanswered']} unanswered  "
            f"{errors}  degraded {100 * (users['degraded_share'] or 0):.0f} %  "
            f"p50 {_ms(users['p50_ms'])}  p99 {_ms(users['p99_ms'])} ms"
        )
    for problem in row["problems"]:
        yield f"    ! {problem}"


def first_alarm(row: Mapping[str, Any]) -> str:
    """Returns the first alarm that was raised and when."""
    if not row["alarms"]:
        return "none"
    what, after_s = min(row["alarms"].items(), key=lambda item: item[1])
    return f"{what} (after {after_s:.1f} s)"


def markdown(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the drills as a table of the page."""
    yield (
        "| drill | requests while it lasted | without an answer | HTTP errors | degraded | p50 / p99 before |"
        " during | after | first alarm | recovered after |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        before, during, after = (row["users"][phase] for phase in PHASES)
        errors = ", ".join(f"{number} × {status}" for status, number in during["errors"].items()) or "0"
        latency = [f"{_ms(users['p50_ms'])} / {_ms(users['p99_ms'])} ms" for users in (before, during, after)]
        recovered = "–" if row["recovered_s"] is None else f"{row['recovered_s']:.1f} s"
        cells = [
            row["what"], during["requests"], during["unanswered"], errors,
            f"{100 * (during['degraded_share'] or 0):.0f} %", *latency, first_alarm(row), recovered,
        ]  # fmt: skip
        yield "| " + " | ".join(str(cell) for cell in cells) + " |"


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.quantile(values, share)), 1) if values else None


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
