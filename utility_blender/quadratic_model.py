"""A quadratic model of the reward: `Q(x, w) = b(x) + (a + B x) . v + v C v`, v the centred direction of the weights.

A ranking knows the direction of its weights only, so v is `w / |w|`, less what the exploration law draws on average
around the centre, in standard deviations. Ridge regression on [1, x, v, v_a v_b (a <= b), x v]; the constant is free.
Design: blender.md, section 5.

Shape letters: N requests, X width of an encoded context, T tasks, A arms, P pairs of tasks (a <= b), F regressors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utility_blender.centring import unit
from utility_blender.contexts import ContextEncoder, Contexts, Floats
from utility_blender.learn_config import LearnConfig
from utility_blender.outcomes import Outcomes
from utility_blender.prepared import encoder_of, fit_standard
from utility_blender.reward import RewardConfig, request_rewards

NUM_ARMS = 400
_PART = 1_000
"""Requests whose arms are laid out at once, which bounds the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticModel:
    """See the module. A `QModel` of `utility_blender.evaluate`."""

    encoder: ContextEncoder
    reward_of: Mapping[str, tuple[float, float]]
    """Scenario -> mean and standard deviation of the rewards; the model itself speaks in the latter. Of a scenario it
    does not know, it speaks in standard deviations."""
    arms_AT: Floats
    """Draws of the exploration law as factors of the centre, in pairs that mirror each other."""
    sd_T: Floats
    """Standard deviation of the explored directions."""
    base_X: Floats
    """b: a constant, then one number per column of the context."""
    slope_XT: Floats
    """a, then B."""
    curve_TT: Floats
    """C, symmetric."""

    def predict(self, contexts: Contexts, weights_NT: Floats, center_NT: Floats) -> Floats:
        """Returns reward_N expected under some weights, drawn around a centre."""
        q_N = np.empty(len(contexts))
        x_NX = _with_one(self.encoder.encode(contexts))
        for rows, _, mean_NT in self._arms(center_NT):
            v_NAT = ((unit(weights_NT[rows]) - mean_NT) / self.sd_T)[:, None]
            q_N[rows] = x_NX[rows] @ self.base_X + self._gain(x_NX[rows], v_NAT)[:, 0]
        mean_N, sd_N = np.array([self.reward_of.get(name, (0.0, 1.0)) for name in contexts.scenario]).reshape(-1, 2).T
        reward_N: Floats = mean_N + sd_N * q_N
        return reward_N

    def best_arms(self, contexts: Contexts, center_NT: Floats) -> Floats:
        """Returns weights_NT of the arm around each centre that the model expects most of."""
        weights_NT = np.empty_like(center_NT)
        x_NX = _with_one(self.encoder.encode(contexts))
        for rows, v_NAT, _ in self._arms(center_NT):
            weights_NT[rows] = center_NT[rows] * self.arms_AT[self._gain(x_NX[rows], v_NAT).argmax(axis=1)]
        return weights_NT

    def best_of_all(self, contexts: Contexts, center_NT: Floats) -> Floats:
        """Returns the arm_T, as factors of the centre, that the model expects most of over all requests together."""
        gain_A = np.zeros(len(self.arms_AT))
        x_NX = _with_one(self.encoder.encode(contexts))
        for rows, v_NAT, _ in self._arms(center_NT):
            gain_A += self._gain(x_NX[rows], v_NAT).sum(axis=0)
        best_T: Floats = self.arms_AT[gain_A.argmax()]
        return best_T

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {
            "encoder": self.encoder.as_dict(),
            "reward_of": {k: list(v) for k, v in self.reward_of.items()},
        } | arrays

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "QuadraticModel":
        """Returns the model of plain data.

        Raises:
            KeyError, TypeError, ValueError: it is not a model's.
        """
        encoder = ContextEncoder.from_dict(data["encoder"])
        arrays = {name: np.array(data[name], np.float64) for name in _ARRAYS}
        num_tasks, width = len(arrays["sd_T"]), 1 + encoder.width
        shapes = {
            "arms_AT": (len(arrays["arms_AT"]), num_tasks),
            "sd_T": (num_tasks,),
            "base_X": (width,),
            "slope_XT": (width, num_tasks),
            "curve_TT": (num_tasks, num_tasks),
        }
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name}: is not allowed; finite numbers of the shape {shape}")
        reward_of = {str(name): (float(mean), float(sd)) for name, (mean, sd) in data["reward_of"].items()}
        return QuadraticModel(encoder=encoder, reward_of=reward_of, **arrays)

    def _gain(self, x_NX: Floats, v_NAT: Floats) -> Floats:
        """Returns what each arm adds to b(x), gain_NA."""
        slope_NT = x_NX @ self.slope_XT
        gain_NA: Floats = np.einsum("nat,nt->na", v_NAT, slope_NT) + ((v_NAT @ self.curve_TT) * v_NAT).sum(axis=2)
        return gain_NA

    def _arms(self, center_NT: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
        """Yields parts of the requests: which, the centred directions of their arms v_NAT, and the centre mean_NT."""
        for rows, unit_NAT, mean_NT in _laid_out(center_NT, self.arms_AT):
            yield rows, (unit_NAT - mean_NT[:, None]) / self.sd_T, mean_NT


_ARRAYS = ("arms_AT", "sd_T", "base_X", "slope_XT", "curve_TT")


def fit_quadratic_model(
    outcomes: Outcomes,
    reward: RewardConfig,
    *,
    config: LearnConfig,
    numeric: Sequence[str],
    seed: int,
    plain: bool = False,
) -> QuadraticModel:
    """Returns the model of explored requests; `plain`: with a slope that is the same everywhere, and no curve.

    Raises:
        ValueError: the draws are not of one lognormal law, or a feature is not logged.
    """
    tau, truncate = _law(outcomes)
    jitter_AT = _jitter(len(outcomes.tasks), truncate, np.random.default_rng(seed))
    is_drawn_T = (outcomes.weights_NT != outcomes.center_NT).any(axis=0)  # the others stay what they are
    arms_AT = np.exp(tau * jitter_AT * is_drawn_T)
    encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)
    x_NX = _with_one(encoder.encode(outcomes.contexts))
    mean_NT = np.concatenate([mean for _, _, mean in _laid_out(outcomes.center_NT, arms_AT)])
    v_NT = unit(outcomes.weights_NT) - mean_NT
    sd_T = np.maximum(v_NT.std(axis=0), 1e-9)
    v_NT /= sd_T
    scenario, reward_N = outcomes.contexts.scenario, request_rewards(outcomes, reward)
    standard = fit_standard(reward_N, scenario, reward.winsorize)
    a_P, b_P = np.triu_indices(0 if plain else v_NT.shape[1])
    slope_NXT = (x_NX[:, :1] if plain else x_NX)[:, :, None] * v_NT[:, None, :]
    regressors_NF = np.concatenate([x_NX, v_NT[:, a_P] * v_NT[:, b_P], slope_NXT.reshape(len(v_NT), -1)], axis=1)
    penalty_F = np.full(regressors_NF.shape[1], config.ridge)
    penalty_F[0] = 0.0
    gram_FF = regressors_NF.T @ regressors_NF + np.diag(penalty_F)
    found_F = np.linalg.lstsq(gram_FF, regressors_NF.T @ standard(reward_N, scenario), rcond=None)[0]
    base_X, curve_P, slope_F = np.split(found_F, [x_NX.shape[1], x_NX.shape[1] + len(a_P)])
    curve_TT, slope_XT = np.zeros((v_NT.shape[1],) * 2), np.zeros((x_NX.shape[1], v_NT.shape[1]))
    curve_TT[a_P, b_P] = curve_P
    slope_XT[: slope_NXT.shape[1]] = slope_F.reshape(-1, v_NT.shape[1])
    return QuadraticModel(
        encoder=encoder,
        reward_of=standard.moments,
        arms_AT=arms_AT,
        sd_T=sd_T,
        base_X=base_X,
        slope_XT=slope_XT,
        curve_TT=(curve_TT + curve_TT.T) / 2,
    )


def _law(outcomes: Outcomes) -> tuple[float, float]:
    laws = np.unique(np.stack([outcomes.tau_N, outcomes.truncate_N], axis=1), axis=0)
    if len(laws) != 1 or not np.isfinite(laws).all():
        raise ValueError("outcomes: drawn by several laws, or not by the lognormal one; give those of one tau alone")
    return float(laws[0, 0]), float(laws[0, 1])


def _jitter(num_tasks: int, truncate: float, rng: np.random.Generator) -> Floats:
    """Returns truncated standard normal draws, each with its mirror image: their mean is 0 exactly."""
    half = rng.standard_normal((NUM_ARMS // 2, num_tasks))
    while (outside := np.abs(half) > truncate).any():
        half[outside] = rng.standard_normal(int(outside.sum()))
    return np.concatenate([half, -half])


def _laid_out(center_NT: Floats, arms_AT: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yields parts of the requests: which, the directions of all arms around their centres unit_NAT, and their mean."""
    for start in range(0, len(center_NT), _PART):
        rows = slice(start, start + _PART)
        unit_NAT = unit(center_NT[rows][:, None, :] * arms_AT)
        yield rows, unit_NAT, unit_NAT.mean(axis=1)


def _with_one(x_NX: Floats) -> Floats:
    return np.concatenate([np.ones((len(x_NX), 1)), x_NX], axis=1)
