"""The scale of the scores: what one unit of a task's score is, so that a weight is a contribution in such units.

Learning needs scores of one size: then every task's direction is as steep as any other's, and one step size fits all.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.outcomes import Outcomes

FLOOR = 1e-6
"""Least scale: a task whose scores never differ has no say in a ranking anyway."""


def score_scale(outcomes: Outcomes) -> dict[str, Floats]:
    """Returns the standard deviation of each task's score over the candidates of each scenario, scale_T by scenario."""
    names = np.array(outcomes.contexts.scenario)
    scale_of = {}
    for name in sorted(set(outcomes.contexts.scenario)):
        rows_N = names == name
        scores_RT = outcomes.scores_NCT[rows_N][outcomes.present_NC[rows_N]].astype(np.float64)
        scale_of[str(name)] = np.maximum(scores_RT.std(axis=0), FLOOR)
    return scale_of


def rescaled(outcomes: Outcomes, scale_of: Mapping[str, Floats]) -> Outcomes:
    """Returns the same requests with weights on another scale: every utility, and so every slate, stays what it was.

    The density of a draw is that of the new weights: it changes by the Jacobian of the rescaling, over the weights that
    were drawn. What a grid gives is a probability, which stays.
    """
    scale_NT = np.array([scale_of[scenario] for scenario in outcomes.contexts.scenario])
    factor_NT = scale_NT / outcomes.scale_NT
    has_density_NT = (outcomes.weights_NT != outcomes.center_NT) & np.isfinite(outcomes.tau_N)[:, None]
    return replace(
        outcomes,
        center_NT=outcomes.center_NT * factor_NT,
        weights_NT=outcomes.weights_NT * factor_NT,
        log_density_N=outcomes.log_density_N - np.where(has_density_NT, np.log(factor_NT), 0.0).sum(axis=1),
        scale_NT=scale_NT,
    )
