"""One online logistic model per label policy, all on the same world: score each item when it is shown, learn after.

Letters: N items, F features, R rows of one chunk, P variants. All start from one fit on settled labels, take plain
gradient steps of one size, and weigh their rows by `model.label_policy.row_terms`.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.study_heads import Heads, exact_estimates, fit, sigmoid
from freshrank.study_stream import Rows
from freshrank.study_variants import Variant
from model.label_policy import ESTIMATES, row_terms, served_probability
from sim.study_world import DelayWorld

Float64Array = npt.NDArray[np.float64]


class Schedule(NamedTuple):
    """What is learned when, in event time."""

    fit_ms: int
    """The first fit uses the items shown before; their windows must have closed by `start_ms`."""
    start_ms: int
    """Rows triggered from here on are learned as they come."""
    chunk_ms: int
    """Time between two updates of the model that scores."""
    rate: float
    """Step size per row."""


def learn(
    world: DelayWorld, rows: Mapping[str, Rows], variants: Mapping[str, Variant], schedule: Schedule
) -> dict[str, Float64Array]:
    """Returns, per variant, the probability that it gave each item when it was shown, `[N]`; and that of `frozen`.

    `rows` are those of `study_variants.variant_rows`. The first fit scores the items shown before `schedule.start_ms`,
    and for `frozen` all of them.
    """
    features_NF, shown_ms_N = world.features_NF, world.shown_ms_N
    num_fit = int(np.searchsorted(shown_ms_N, schedule.fit_ms))
    first_F = fit(features_NF[:num_fit], world.label_N[:num_fit])
    fresh = Heads(world, num_fit)
    heads = {"fresh": fresh, "frozen": deepcopy(fresh)}
    exact_N = exact_estimates(world)
    weights_PF = np.tile(first_F, (len(variants), 1))
    scores_NP = sigmoid(features_NF @ weights_PF.T)
    edges_ms = np.arange(schedule.start_ms, int(shown_ms_N[-1]) + schedule.chunk_ms + 1, schedule.chunk_ms)
    shown_at = np.searchsorted(shown_ms_N, edges_ms)
    chunks = {name: _chunks(rows[name], edges_ms) for name in {"wait", *variants}}
    for chunk in range(len(edges_ms) - 1):
        shown = slice(shown_at[chunk], shown_at[chunk + 1])
        scores_NP[shown] = sigmoid(features_NF[shown] @ weights_PF.T)
        for place, (name, (policy, _, heads_name)) in enumerate(variants.items()):
            part = chunks[name][chunk]
            if not len(part.item_R):
                continue
            features_RF = features_NF[part.item_R]
            if heads_name == "exact":
                estimates = {head: exact_N[head][part.item_R] for head in ESTIMATES.get(policy, ())}
            else:
                estimates = heads[heads_name].estimates(policy, features_RF)
            f_R = sigmoid(features_RF @ weights_PF[place])
            terms = row_terms(policy, part.kind_R, part.label_R, f_R, ratio=part.ratio_R, **estimates)
            slope_R = terms.a_plus * (1 - f_R) - terms.a_minus * f_R
            weights_PF[place] += schedule.rate * (slope_R @ features_RF)
        closed = chunks["wait"][chunk]
        fresh.learn(features_NF[closed.item_R], closed.label_R, closed.delay_ms_R, schedule.rate)
    scores = {
        name: np.asarray(served_probability(variant.policy, scores_NP[:, place]), np.float64)
        for place, (name, variant) in enumerate(variants.items())
    }
    return scores | {"frozen": sigmoid(features_NF @ first_F)}


def _chunks(rows: Rows, edges_ms: npt.NDArray[np.int64]) -> list[Rows]:
    """Returns the rows triggered between each two edges."""
    ends = np.searchsorted(rows.trigger_ms_R, edges_ms)
    return [rows.take(slice(first, last)) for first, last in pairwise(ends)]
