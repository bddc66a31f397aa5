"""Labels that are corrected later: what rows of such policies carry, and what they weigh in one batch.

Messages whose policies send every label once and final (`wait`, `eager`, `oracle`) carry none of this.
Letters: B rows, T tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from model.label_policy import ESTIMATES, Estimate, row_terms, served_probability
from model.metrics import BoolArray, Float64Array, Int64Array, logit_of
from stream.schema import KIND_CODE, SETTLED_KINDS, PolicyName

POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
POLICY_CODE: dict[str, int] = {name: code for code, name in enumerate(POLICY_NAMES)}
FINAL_POLICIES: tuple[PolicyName, ...] = ("wait", "eager", "oracle")
"""Policies that send each label once, final."""
_WEIGHTLESS: tuple[PolicyName, ...] = (*FINAL_POLICIES, "vanilla", "vanilla_dup")
"""Policies whose rows weigh 1; `eager`'s ratio is in the rows' weight already."""

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
Estimator = Callable[[PolicyName, int, Int64Array], dict[Estimate, Float32Array]]
"""From a policy, a task's index and rows to what the auxiliary heads say about them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedLabels:
    """What rows carry besides label and weight, [B] or [B, T]."""

    key_B: Int64Array
    """Names the slate and the position in it: the same in every emission of an item."""
    impression_ms_B: Int64Array
    policy_BT: Int8Array
    """Index in `POLICY_NAMES`, of the message that the row came with."""
    kind_BT: Int8Array
    delay_ms_BT: Int64Array
    """Impression to feedback; -1 where there is none."""
    observe_ms_BT: Int64Array
    """When the early look was taken; -1 where the policy takes none."""
    window_ms_BT: Int64Array

    @staticmethod
    def of_final(kind_BT: Int8Array, impression_ms_B: Int64Array) -> "DelayedLabels":
        """Returns rows of policies that send final labels only."""
        nothing_BT = np.full(kind_BT.shape, -1, np.int64)
        return DelayedLabels(
            key_B=np.zeros(len(kind_BT), np.int64),
            impression_ms_B=impression_ms_B,
            policy_BT=np.full(kind_BT.shape, POLICY_CODE["wait"], np.int8),
            kind_BT=kind_BT,
            delay_ms_BT=nothing_BT,
            observe_ms_BT=nothing_BT,
            window_ms_BT=nothing_BT,
        )

    def take(self, rows: slice | Int64Array) -> "DelayedLabels":
        """Returns some of the rows, in the given order."""
        return DelayedLabels(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def concat(parts: Sequence["DelayedLabels"]) -> "DelayedLabels":
        """Returns the rows of all `parts` (at least one), in order."""
        names = [field.name for field in fields(DelayedLabels)]
        return DelayedLabels(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def settled_BT(self) -> BoolArray:
        """Returns where the label is the truth of a closed window."""
        return np.isin(self.kind_BT, [KIND_CODE[kind] for kind in SETTLED_KINDS])

    def needs_heads_BT(self) -> BoolArray:
        """Returns where the policy's weights need auxiliary heads; cells of kind `none` are off."""
        codes = [POLICY_CODE[policy] for policy in ESTIMATES]
        needs_BT: BoolArray = np.isin(self.policy_BT, codes) & (self.kind_BT != KIND_CODE["none"])
        return needs_BT


class PolicyWeights(NamedTuple):
    """What the policies make of one batch, [B, T]."""

    target_BT: Float32Array
    """The label; a share between 0 and 1 where a row pulls both ways (`defuse`)."""
    factor_BT: Float32Array
    """Factor of the row's weight."""
    num_weighed: int
    """Cells whose weight their policy computed."""
    num_guarded: int
    """Those of them with an estimate or weight outside its valid range, cut to it."""


def policy_weights(
    delayed: DelayedLabels, label_BT: Float32Array, weighed_BT: BoolArray, score_BT: Float32Array, estimates: Estimator
) -> PolicyWeights:
    """Returns targets and factors: a_plus * softplus(-z) + a_minus * softplus(z) = factor * BCE(z, target).

    `score_BT` are the model's own probabilities; only cells of `weighed_BT` are asked for, the others keep label and 1.
    """
    target_BT, factor_BT = label_BT.copy(), np.ones_like(score_BT)
    num_weighed = num_guarded = 0
    for task in range(label_BT.shape[1]):
        for code in np.unique(delayed.policy_BT[:, task]).tolist():
            policy = POLICY_NAMES[code]
            if policy in _WEIGHTLESS:
                continue
            rows = np.flatnonzero((delayed.policy_BT[:, task] == code) & weighed_BT[:, task])
            if not len(rows):
                continue
            needed = estimates(policy, task, rows) if policy in ESTIMATES else {}
            kind, label, score = delayed.kind_BT[rows, task], label_BT[rows, task], score_BT[rows, task]
            terms = row_terms(policy, kind, label, score, **needed)
            factor_BT[rows, task] = terms.a_plus + terms.a_minus
            if policy == "defuse":
                target_BT[rows, task] = terms.a_plus / (terms.a_plus + terms.a_minus)
            num_weighed += len(rows)
            num_guarded += terms.num_guarded
    return PolicyWeights(target_BT, factor_BT, num_weighed, num_guarded)


def probability_logits(delayed: DelayedLabels, logit_BT: npt.NDArray[np.floating]) -> Float64Array:
    """Returns the logits of P(y=1) from the model's own: the same, but where the policy's scores need a map (`fnc`)."""
    result_BT: Float64Array = logit_BT.astype(np.float64)
    mapped_BT = delayed.policy_BT == POLICY_CODE["fnc"]
    if mapped_BT.any():
        score = 1.0 / (1.0 + np.exp(-np.clip(result_BT[mapped_BT], -64.0, 64.0)))
        result_BT[mapped_BT] = logit_of(served_probability("fnc", score))
    return result_BT
