"""`grid_q`: a network says what every arm of a grid would bring, and the best arm serves.

After PRL-PUTS (Pinterest, 2026, arXiv 2605.16344): two heads, those with the largest share of the utility, times 7 x 7
arms; the others keep the weights in service. One output per action on context and arm, squared error.

Departures: the published sum `alpha Q_a + (1 - alpha) Q_b` of two objectives, swept online, becomes the reward table,
`sum_a rho_a Q_a`. The published target min(count, 1) is that of `aggregate: binary`; by default actions are counted, as
the reward is: where most slates have a closeup, whether there was one says little of how many. Outputs are linear in
standard deviations, without sigmoid; two layers instead of three; inputs are standardised once, not in each layer. The
context stands for user embedding and recent actions. Any log will do, arms span what it explored.

Shape letters: N requests, X width of an encoded context, T tasks, A arms, O objectives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import ContextEncoder, Contexts, Floats
from utility_blender.fit import Fitted
from utility_blender.fit_mlp import fit_mlp
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import as_learned, policy_from_dict, policy_to_dict
from utility_blender.mlp import Mlp, new_mlp
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.prepared import encoder_of
from utility_blender.reward import RewardConfig

LEVELS = 7
"""Arms per head."""
_PART = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPolicy:
    """The arm around the centre's weights that the network expects most of."""

    center: Policy
    encoder: ContextEncoder
    mlp: Mlp
    """Context, then the two factors from 0 (least explored) to 1 (most): each objective, in standard deviations."""
    heads: tuple[int, int]
    """Places of the two tasks among the schema's."""
    levels_2L: Floats
    """Factors of the centre's weight of either head, rising."""
    worth_O: Floats
    """What a standard deviation of each objective is worth."""

    kind = "grid_q"

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        weights_NT = self.center.weights(contexts).copy()
        x_NX = self.encoder.encode(contexts)
        arms_A2, scaled_A2 = self._arms()
        for start in range(0, len(x_NX), _PART):
            rows = slice(start, start + _PART)
            part_NX = x_NX[rows]
            pairs = np.concatenate(
                [np.repeat(part_NX, len(arms_A2), axis=0), np.tile(scaled_A2, (len(part_NX), 1))], axis=1
            )
            value_NA = (self.mlp(pairs) @ self.worth_O).reshape(len(part_NX), -1)
            weights_NT[rows, self.heads] *= arms_A2[value_NA.argmax(axis=1)]
        return weights_NT

    def as_dict(self) -> dict[str, Any]:
        """See `policy_to_dict`."""
        return {
            "center": policy_to_dict(self.center),
            "encoder": self.encoder.as_dict(),
            "mlp": self.mlp.as_list(),
            "heads": list(self.heads),
            "levels": self.levels_2L.tolist(),
            "worth": self.worth_O.tolist(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "GridPolicy":
        """See `policy_from_dict`."""
        first, second = map(int, data["heads"])
        policy = GridPolicy(
            center=policy_from_dict(data["center"]),
            encoder=ContextEncoder.from_dict(data["encoder"]),
            mlp=Mlp.from_list(data["mlp"]),
            heads=(first, second),
            levels_2L=np.array(data["levels"], np.float64).reshape(2, -1),
            worth_O=np.array(data["worth"], np.float64),
        )
        if not (policy.levels_2L > 0).all() or not np.isfinite(policy.levels_2L).all():
            raise ValueError("levels: finite factors above 0 are needed")
        if policy.mlp.layers[0][0].shape[0] != policy.encoder.width + 2 or policy.worth_O.shape != (
            len(policy.mlp.layers[-1][1]),
        ):
            raise ValueError("mlp: the network does not fit the encoder or the objectives")
        return policy

    def _arms(self) -> tuple[Floats, Floats]:
        """Returns the factors of every arm, and what the network sees of them."""
        first, second = np.meshgrid(*self.levels_2L, indexing="ij")
        arms_A2 = np.stack([first.ravel(), second.ravel()], axis=1)
        return arms_A2, _scaled(arms_A2, self.levels_2L)


def main_heads(outcomes: Outcomes) -> tuple[int, int]:
    """Returns the places of the two tasks with the largest share of the utility, E|w_t h_t|, in the schema's order."""
    share_T = np.zeros(len(outcomes.tasks))
    for part in _parts(outcomes):
        unit_NT = np.abs(part.center_NT / part.scale_NT)
        share_T += (np.abs(part.scores_NCT).sum(axis=1) * unit_NT).sum(axis=0)
    first, second = sorted(np.argsort(-share_T, kind="stable")[:2].tolist())
    return first, second


def fit_grid_q(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """See `utility_blender.fit.fit`; of all the outcomes, there is nothing to choose.

    Raises:
        ValueError: fewer than two tasks, or one of the two main heads was never explored.
    """
    if len(outcomes.tasks) < 2:
        raise ValueError(f"learn.method: grid_q needs two tasks, there is {', '.join(outcomes.tasks)}")
    heads = main_heads(outcomes)
    factor_N2 = outcomes.weights_NT[:, heads] / outcomes.center_NT[:, heads]
    levels_2L = np.geomspace(factor_N2.min(axis=0), factor_N2.max(axis=0), LEVELS, axis=1)
    if (levels_2L[:, 0] == levels_2L[:, -1]).any():
        raise ValueError(f"outcomes: {' or '.join(outcomes.tasks[head] for head in heads)} was never explored")
    objectives = [place for place, action in enumerate(outcomes.actions) if reward.values.get(action)]
    count_NO = outcomes.value_NCA[:, :, objectives].sum(axis=1)
    if reward.aggregate == "binary":
        count_NO = np.minimum(count_NO, 1.0)
    sd_O = np.maximum(count_NO.std(axis=0), 1e-9)
    target_NO = (count_NO - count_NO.mean(axis=0)) / sd_O
    encoder = encoder_of(outcomes.contexts, config.context, numeric=numeric, own_from=config.own_from)
    inputs_NX = np.concatenate([encoder.encode(outcomes.contexts), _scaled(factor_N2, levels_2L)], axis=1)

    def objective(rows_B: NDArray[np.int64], output_BO: Floats, extra_E: Floats) -> tuple[Floats, Floats]:
        return 2 * (output_BO - target_NO[rows_B]) / len(rows_B), np.zeros_like(extra_E)

    rng = np.random.default_rng(seed)
    start = new_mlp((inputs_NX.shape[1], *config.hidden, len(objectives)), rng)
    mlp, _ = fit_mlp(start, inputs_NX, objective, config.adam_base, rng)
    if isinstance(center, StaticPolicy):
        center = as_learned(center, outcomes.tasks)  # knows the names of its tasks when it is written down
    policy = GridPolicy(
        center=center,
        encoder=encoder,
        mlp=mlp,
        heads=heads,
        levels_2L=levels_2L,
        worth_O=sd_O * [reward.values[outcomes.actions[place]] for place in objectives],
    )
    return Fitted(policy, {"heads": [outcomes.tasks[head] for head in heads], "levels": levels_2L.tolist()})


def _scaled(factor_N2: Floats, levels_2L: Floats) -> Floats:
    low_2, high_2 = np.log(levels_2L[:, 0]), np.log(levels_2L[:, -1])
    scaled_N2: Floats = (np.log(factor_N2) - low_2) / (high_2 - low_2)
    return scaled_N2


def _parts(outcomes: Outcomes) -> Iterator[Outcomes]:
    for start in range(0, outcomes.num_requests, _PART):
        yield outcomes.take(np.arange(start, min(start + _PART, outcomes.num_requests)))
