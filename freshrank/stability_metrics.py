"""What a trace along a stream says: quality, calibration, and churn per period and per publish. Pure.

Letters: N requests, K candidates (padded), T tasks, P periods, R rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from freshrank.stability_stream import Float64Array, Stream, Trace
from freshrank.study_metrics import auc, calibration, normalized_entropy, over_seeds
from model.churn import IntArray, good_bad_churn, overlap, ranks, rbo, top1_changed

TOP_K = 10
Figures = dict[str, float]
"""By name; each a mean over tasks, periods and requests where there are several."""


def figures(stream: Stream, trace: Trace, first_period: int) -> Figures:
    """Returns the figures of a trace from a period on; before it a model is still new.

    Churn is of the utility with fixed weights, between the ends of successive periods; `publish_` between the last two
    publishes of a period. Pairs turn for good or bad by the utility of the truth at the end of the later period.
    """
    truth_RT = np.concatenate(stream.truth)[: len(trace.score_RT)]
    rows = slice(sum(map(len, stream.truth[: first_period * stream.period])), None)
    truth_RT, score_RT = truth_RT[rows], trace.score_RT[rows].astype(np.float64)
    tasks = range(truth_RT.shape[1])
    found = {
        "ne": _mean(normalized_entropy(truth_RT[:, t], score_RT[:, t]) for t in tasks),
        "auc": _mean(auc(truth_RT[:, t], score_RT[:, t]) for t in tasks),
        "calibration": _mean(calibration(truth_RT[:, t], score_RT[:, t]) for t in tasks),
    }
    ends = [utility_ranks(stream, score_NKT) for score_NKT in trace.end_PNKT[first_period - 1 :]]
    befores = [utility_ranks(stream, score_NKT) for score_NKT in trace.before_PNKT[first_period:]]
    found |= churn(stream, ends[:-1], ends[1:])
    by_publish = churn(stream, befores, ends[1:])
    found |= {f"publish_{name}": by_publish[name] for name in ("top1_changed", "rbo_distance")}
    turned = [
        good_bad_churn(old, new, truth_NKT @ stream.weights_T, stream.probe.is_item_NK)
        for old, new, truth_NKT in zip(ends, ends[1:], stream.probe.truth_PNKT[first_period:], strict=False)
    ]
    good, bad = (sum(float(getattr(one, side).sum()) for one in turned) for side in ("good_N", "bad_N"))
    num_lists = len(turned) * len(stream.probe.is_item_NK)
    return found | {"good_pairs": good / num_lists, "bad_pairs": bad / num_lists, "wlr": good / max(bad, 1.0)}


def churn(stream: Stream, old: Sequence[IntArray], new: Sequence[IntArray]) -> Figures:
    """Returns the churn between rankings, ranks_NK each, one by one."""
    is_item_NK, pairs = stream.probe.is_item_NK, list(zip(old, new, strict=True))
    return {
        "top1_changed": _mean(top1_changed(a, b).mean() for a, b in pairs),
        "rbo_distance": 1 - _mean(rbo(a, b, is_item_NK).mean() for a, b in pairs),
        "overlap": _mean(overlap(a, b, is_item_NK, TOP_K).mean() for a, b in pairs),
    }


def utility_ranks(stream: Stream, score_NKT: Float64Array) -> IntArray:
    """Returns the ranks by the production weights' utility, [N, K]."""
    return ranks(score_NKT @ stream.weights_T, stream.probe.is_item_NK)


def between(stream: Stream, one: Trace, other: Trace, first_period: int) -> Figures:
    """Returns the churn between two models at the ends of the same periods."""
    first, second = (
        [utility_ranks(stream, score_NKT) for score_NKT in trace.end_PNKT[first_period - 1 :]] for trace in (one, other)
    )
    return churn(stream, first, second)


def mean_of(one: Trace, other: Trace) -> Trace:
    """Returns the trace of two models that serve their mean score."""
    return Trace(
        np.asarray((one.score_RT + other.score_RT) / 2, np.float32),
        (one.end_PNKT + other.end_PNKT) / 2,
        (one.before_PNKT + other.before_PNKT) / 2,
    )


def excess_by_batch(stream: Stream, trace: Trace, base: Trace, first_batch: int, width: int) -> Float64Array:
    """Returns NE minus the base's by age since a batch, each value over `width` batches."""

    def ne_of(score_RT: Any, start: int) -> float:
        truth_RT = np.concatenate(stream.truth[start : start + width])
        first = sum(map(len, stream.truth[:start]))
        part_RT = score_RT[first : first + len(truth_RT)].astype(np.float64)
        return _mean(normalized_entropy(truth_RT[:, t], part_RT[:, t]) for t in range(truth_RT.shape[1]))

    starts = range(first_batch, len(stream.batches) - width + 1, width)
    return np.array([ne_of(trace.score_RT, start) - ne_of(base.score_RT, start) for start in starts])


def summary(by_seed: Sequence[Figures], base: Sequence[Figures]) -> dict[str, Any]:
    """Returns each figure over seeds as `{mean, ci}`, and NE, AUC and churn against a base, paired by seed."""
    paired = list(zip(by_seed, base, strict=True))
    return {name: over_seeds([one[name] for one in by_seed]) for name in by_seed[0]} | {
        "ne_difference": over_seeds([one["ne"] - other["ne"] for one, other in paired]),
        "auc_difference": over_seeds([one["auc"] - other["auc"] for one, other in paired]),
        "top1_ratio": over_seeds([one["top1_changed"] / max(other["top1_changed"], 1e-9) for one, other in paired]),
        "rbo_distance_ratio": over_seeds(
            [one["rbo_distance"] / max(other["rbo_distance"], 1e-9) for one, other in paired]
        ),
    }


def is_free(summarised: Mapping[str, Any], limit: float) -> bool:
    """Returns whether the upper end of the interval of the difference of NE is at most `limit`."""
    interval = summarised["ne_difference"]["ci"]
    return bool((interval[1] if interval else summarised["ne_difference"]["mean"]) <= limit)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
