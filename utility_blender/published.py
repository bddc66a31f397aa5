"""The form published for Pinterest's Closeup (engineering blog, 2023), kept as a documented negative.

    g(x, r) = sigma(r . f(x) + b),      L = sum over rows R loss(g, y) + penalty |s - f(x)|^2,      served: w = f(x)

r are the explored weights, raw: neither centred nor normalised; b is one number; loss is the cross-entropy. What a row
is, how a hide enters and where the prior stands was not published: see `PublishedConfig`. Why it does not win (f is a
slope, not an optimum; the prior is a step size; one b for all contexts turns rankings around): blender.md, section 3.

Since x and r belong to the request, its rows add up to two numbers: P, the weight of its positive rows, and M, that of
its negative ones; its loss is `P softplus(-z) + M softplus(z)`. Shape letters: N requests, T tasks, B rows of a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.fit import Fitted
from utility_blender.fit_mlp import fit_mlp
from utility_blender.learn_config import LearnConfig, PublishedConfig
from utility_blender.learned import LearnedPolicy, Link
from utility_blender.mlp import new_mlp
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.prepared import encoder_of
from utility_blender.reward import RewardConfig

RUNAWAY = 30.0
"""Mean logits under production's weights beyond this (a probability of 1e-13) are not on their way to any minimum."""


class Rows(NamedTuple):
    """The rows of each request, added up."""

    positive_N: Floats
    negative_N: Floats
    num_N: Floats


def rows_of(outcomes: Outcomes, reward: RewardConfig, config: PublishedConfig) -> Rows:
    """Returns the rows of every request: y=1 with R = rho_a for an action, y=0 with R = 1 where there was none."""
    worth_A = np.array([reward.values.get(action, 0.0) for action in outcomes.actions])
    counts_A = worth_A != 0
    did_NCA = (outcomes.value_NCA > 0) & counts_A
    without_N = (outcomes.shown_NC & ~did_NCA.any(axis=2)).sum(axis=1).astype(np.float64)
    num_NA = did_NCA.sum(axis=1).astype(np.float64)
    if config.row == "request":
        total_N = num_NA @ worth_A
        without_N = (~did_NCA.any(axis=(1, 2))).astype(np.float64)
        gain_N, loss_N, num_N = np.maximum(total_N, 0.0), np.maximum(-total_N, 0.0), np.ones(len(total_N))
    else:
        gain_N, loss_N = num_NA @ np.maximum(worth_A, 0.0), num_NA @ np.maximum(-worth_A, 0.0)
        num_N = num_NA.sum(axis=1) + without_N
    if config.hide == "literal":
        return Rows(gain_N - loss_N, without_N, num_N)
    return Rows(gain_N, without_N + loss_N, num_N)


def fit_published(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """Returns f; it starts at, and is drawn to, the production weights, whatever is in service; see `fit`.

    Nothing bounds it, as published. Report: `kept`, the share kappa / (kappa + 2 penalty) of the slope that survives
    the prior, kappa = E[R] p (1 - p) tau^2; `bias`; the options.

    Raises:
        ValueError: the bias ran away: hides taken literally outweigh all that was good.
    """
    options = config.published
    rng = np.random.default_rng(seed)
    encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)
    x_NX = encoder.encode(outcomes.contexts)
    static_NT = static.weights(outcomes.contexts)
    rows = rows_of(outcomes, reward, options)
    length_N1 = np.linalg.norm(static_NT, axis=1, keepdims=True)

    def gradients(rows_B: NDArray[np.int64], step_BT: Floats, bias_E: Floats) -> tuple[Floats, Floats]:
        batch = Rows(*(column_N[rows_B] for column_N in rows))
        static_BT, length_B1 = static_NT[rows_B], length_N1[rows_B]
        _, by_f_BT, by_bias = loss(
            batch, outcomes.weights_NT[rows_B], static_BT + length_B1 * step_BT, static_BT, bias_E[0], options
        )
        return by_f_BT * length_B1, np.array([by_bias])

    z_N = (outcomes.weights_NT * static_NT).sum(axis=1)

    def watch(bias_E: Floats) -> None:
        if not abs(bias_E[0] + z_N.mean()) <= RUNAWAY:
            raise _ran_away(bias_E[0])

    start = new_mlp((encoder.width, *config.hidden, len(outcomes.tasks)), rng)
    bias = np.array([best_bias(rows, z_N)])
    mlp, bias_E = fit_mlp(start, x_NX, gradients, config.adam_base, rng, extra_E=bias, watch=watch)
    policy = LearnedPolicy(outcomes.tasks, dict(static.weights_of), (Link(encoder, mlp, np.inf, config.strength),))
    num = rows.num_N.sum()
    share = float((np.abs(rows.positive_N)).sum() / (np.abs(rows.positive_N) + rows.negative_N).sum())
    tau = float(np.nanmean(outcomes.tau_N)) if np.isfinite(outcomes.tau_N).any() else 0.0
    kappa = float((np.abs(rows.positive_N) + rows.negative_N).sum() / num) * share * (1 - share) * tau**2
    kept = kappa / (kappa + 2 * options.penalty) if kappa > 0 else 0.0
    return Fitted(
        policy,
        {
            "method": "published",
            "penalty": options.penalty,
            "hide": options.hide,
            "prior": options.prior,
            "row": options.row,
            "kappa": kappa,
            "kept": kept,
            "bias": float(bias_E[0]),
        },
    )


def loss(
    rows: Rows, drawn_BT: Floats, f_BT: Floats, static_BT: Floats, bias: float, config: PublishedConfig
) -> tuple[float, Floats, float]:
    """Returns the loss of a batch per row, and its gradients by f_BT and by the bias."""
    z_B = (drawn_BT * f_BT).sum(axis=1) + bias
    num = max(float(rows.num_N.sum()), 1.0)
    far_BT = f_BT - static_BT
    # per row: every row pays; per batch: a request pays its part of one prior for the whole batch
    share_B = rows.num_N if config.prior == "per_row" else np.full(len(z_B), 1.0 / len(z_B))
    cross = rows.positive_N * np.logaddexp(0.0, -z_B) + rows.negative_N * np.logaddexp(0.0, z_B)
    value = float((cross + config.penalty * share_B * (far_BT**2).sum(axis=1)).sum()) / num
    chance_B = np.exp(-np.logaddexp(0.0, -z_B))
    by_z_B = (rows.positive_N * (chance_B - 1.0) + rows.negative_N * chance_B) / num
    by_f_BT: Floats = by_z_B[:, None] * drawn_BT + (2 * config.penalty * share_B / num)[:, None] * far_BT
    return value, by_f_BT, float(by_z_B.sum())


def best_bias(rows: Rows, z_N: Floats) -> float:
    """Returns the bias of least loss for given logits, by bisection of the gradient.

    Raises:
        ValueError: it runs away, because there is no minimum.
    """

    def slope(bias: float) -> float:
        chance_N = np.exp(-np.logaddexp(0.0, -(z_N + bias)))
        return float((rows.positive_N * (chance_N - 1.0) + rows.negative_N * chance_N).sum())

    low, high = -RUNAWAY - float(z_N.max()), RUNAWAY - float(z_N.min())
    if slope(low) >= 0 or slope(high) <= 0:
        raise _ran_away(low if slope(low) >= 0 else high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def _ran_away(bias: float) -> ValueError:
    return ValueError(
        f"published: the bias ran away to {bias:.1f}, the loss has no minimum; hides taken literally outweigh the "
        "positive rewards, hide: relabel is bounded"
    )
