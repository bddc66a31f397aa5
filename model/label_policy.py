"""What each row of a label policy weighs in the loss (`stream.policy` says which rows go out when).

Loss of a row: a_plus * softplus(-z) + a_minus * softplus(z). For an impression with P(y=1|x) = p, early positives q1,
late positives delta = p - q1 and negatives p0 = 1 - p, the model's own f = sigmoid(z) settles where the expected
gradient over all rows of the impression is zero (`tests/model/test_label_policy.py` has every one of them):

| policy | weight of a positive row / of a negative row | f settles at |
|---|---|---|
| `wait`, `oracle` | 1 / 1 | p |
| `eager` | ratio / 1 | p |
| `vanilla` | 1 / 1 | q1 |
| `vanilla_dup` | 1 / 1 | p / (1 + delta) |
| `fnw` | 1 + f / (1 - f)(1 + f) | p |
| `fnc` | 1 / 1 | p / (1 + p); `served_probability` maps it back |
| `fnw_rn` | 2 / 2 (1 - f) / (2 - f) | p |
| `fsiw` | 1 / seen / negative | p |
| `es_dfm` | 1 + late / (1 + late) negative | p |
| `defer` | f / (f - late/2) / (1 - f) / (1 - f + late/2) | p |
| `defer_neg` | N / N (1 - f) / (2 (1 - f) + late), N = 2 - f + late | p |
| `dfm` | 1 / (1 - f) seen / (1 - f seen) | p if delays are exponential |
| `defuse` | early 1 + late, late 1 / a_plus = late zeta, a_minus = (1 + late)(1 - zeta), zeta = 1 - negative | p |

`late`, `negative`, `seen` are what the auxiliary heads (`model.auxiliary`) estimate. Plain NumPy, so nothing here can
have a gradient: weights are constants of the step. `dfm` is a likelihood, not a weighted one, but the gradient of
-y ln f - (1-y) ln(1 - f seen) on z is exactly that of the row with these weights, so it needs no loss of its own.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stream.schema import KIND_CODE, KINDS, UNTRAINED_KINDS, KindName, PolicyName

FloatArray = npt.NDArray[np.floating[Any]]
Estimate = Literal["late", "negative", "seen"]

_LOOK: tuple[KindName, ...] = ("early_positive", "early_negative", "matured")
_LOOK_AND_CORRECT: tuple[KindName, ...] = (*_LOOK, "late_positive")
_FAKE_NEGATIVES: tuple[KindName, ...] = ("fake_negative", "late_positive", "matured")

POLICY_KINDS: dict[PolicyName, tuple[KindName, ...]] = {
    "wait": ("final",),
    "eager": ("final",),
    "oracle": ("final",),
    "vanilla": _LOOK,
    "vanilla_dup": _LOOK_AND_CORRECT,
    "fnw": _FAKE_NEGATIVES,
    "fnc": _FAKE_NEGATIVES,
    "fnw_rn": (*_FAKE_NEGATIVES, "real_negative_repeat"),
    "fsiw": _LOOK,
    "es_dfm": _LOOK_AND_CORRECT,
    "defer": (*_LOOK_AND_CORRECT, "early_positive_repeat", "real_negative_repeat"),
    "defer_neg": (*_LOOK_AND_CORRECT, "real_negative_repeat"),
    "dfm": _LOOK,
    "defuse": _LOOK_AND_CORRECT,
}
"""Which kinds each policy may send, besides `none`; the joiner's half is `stream.policy.POLICIES`."""

ESTIMATES: dict[PolicyName, tuple[Estimate, ...]] = {
    "fsiw": ("seen", "negative"),
    "es_dfm": ("late", "negative"),
    "defer": ("late",),
    "defer_neg": ("late",),
    "dfm": ("seen",),
    "defuse": ("late", "negative"),
}
"""What the weights of a policy need from auxiliary heads; the others need nothing.

- `late`: delta, P(y=1 and later than the early look | x)
- `negative`: P(y=0 | not positive at the early look, x)
- `seen`: P(at the early look already | y=1, x)
"""

HEAD_MARGIN = 1e-4
"""Estimates are kept this far from 0 and 1."""
MAX_FSIW_WEIGHT = 10.0
MAX_FNC_SCORE = 0.5 - 1e-4
"""`fnc` settles below one half; its map back to p explodes there."""
_TINY = 1e-7
"""Keeps weights finite where float32 rounds a score to 0 or 1."""


class RowTerms(NamedTuple):
    """Factors of a row's two loss terms, of the scores' shape and type, both at least 0."""

    a_plus: FloatArray
    a_minus: FloatArray
    num_guarded: int
    """Rows for which an estimate or a weight was outside its valid range, and was cut to it."""


def row_terms(
    policy: PolicyName,
    kind: npt.NDArray[np.integer[Any]],
    label: FloatArray,
    f: FloatArray,
    *,
    ratio: FloatArray | None = None,
    late: FloatArray | None = None,
    negative: FloatArray | None = None,
    seen: FloatArray | None = None,
) -> RowTerms:
    """Returns what rows of one policy weigh; all arrays have one shape, kinds are codes (`KIND_CODE`), f in [0, 1].

    Rows of the kinds `none` and `matured` weigh nothing. `ratio` is that of `eager`; left out it is 1. Sources of the
    policies: `docs/policies.md`.

    Raises:
        ValueError: a kind that the policy does not send, or an estimate that it needs and that is missing.

    >>> kind = np.array([KIND_CODE["fake_negative"], KIND_CODE["late_positive"]])
    >>> row_terms("fnw", kind, np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    RowTerms(a_plus=array([0. , 1.5]), a_minus=array([0.75, 0.  ]), num_guarded=0)
    """
    if not _ALLOWED[policy][kind].all():
        names = sorted({KINDS[code] for code in np.unique(kind[~_ALLOWED[policy][kind]])})
        raise ValueError(f"kind: {', '.join(names)} is not allowed; policy {policy} sends {_sentence(policy)}")
    given: dict[Estimate, FloatArray | None] = {"late": late, "negative": negative, "seen": seen}
    estimates: dict[Estimate, FloatArray] = {}
    guarded = np.zeros(f.shape, np.bool_)
    for name in ESTIMATES.get(policy, ()):
        value = given[name]
        if value is None:
            raise ValueError(f"{name}: missing; policy {policy} needs it")
        estimates[name] = np.clip(value, HEAD_MARGIN, 1 - HEAD_MARGIN)
        guarded |= estimates[name] != value
    is_positive = label == 1
    plus, minus = _weights(policy, np.clip(f, _TINY, 1 - _TINY), estimates)
    if policy == "eager" and ratio is not None:
        plus = ratio
    elif policy == "fsiw":
        guarded |= np.where(is_positive, plus, minus) > MAX_FSIW_WEIGHT
        plus = np.minimum(plus, MAX_FSIW_WEIGHT)
    elif policy == "defer":
        guarded |= estimates["late"] > f
    elif policy == "fnc":
        guarded |= f > MAX_FNC_SCORE
    a_plus, a_minus = np.where(is_positive, plus, 0.0), np.where(is_positive, 0.0, minus)
    if policy == "defuse":
        # The one policy whose early negatives pull both ways: each is a late positive with probability zeta.
        late, zeta = estimates["late"], 1 - estimates["negative"]
        a_plus = np.where(is_positive, np.where(kind == KIND_CODE["late_positive"], 1.0, 1 + late), late * zeta)
    trained = _TRAINED[kind]
    zero = np.zeros((), f.dtype)
    return RowTerms(
        np.where(trained, a_plus, zero).astype(f.dtype, copy=False),
        np.where(trained, a_minus, zero).astype(f.dtype, copy=False),
        int((guarded & trained).sum()),
    )


def served_probability(policy: PolicyName, f: FloatArray) -> FloatArray:
    """Returns P(y=1) from the model's own score: itself, except for `fnc`, whose score settles at p / (1 + p).

    >>> served_probability("fnc", np.array([0.2, 0.3, 0.4])).round(4)
    array([0.25  , 0.4286, 0.6667])
    """
    if policy != "fnc":
        return f
    capped = np.minimum(f, f.dtype.type(MAX_FNC_SCORE))
    mapped: FloatArray = capped / (1 - capped)
    return mapped


def _weights(
    policy: PolicyName, f: FloatArray, estimates: dict[Estimate, FloatArray]
) -> tuple[FloatArray | float, FloatArray | float]:
    """Returns the weights of a positive and of a negative row: the table on top."""
    match policy:
        case "fnw":
            return 1 + f, (1 - f) * (1 + f)
        case "fnw_rn":
            return 2.0, 2 * (1 - f) / (2 - f)
        case "fsiw":
            return 1 / estimates["seen"], estimates["negative"]
        case "es_dfm" | "defuse":
            late, negative = estimates["late"], estimates["negative"]
            return 1 + late, (1 + late) * negative
        case "defer":
            # Late positives are positives, so delta <= p: a head that says more would turn the weight's sign.
            half = np.minimum(estimates["late"], f) / 2
            return f / (f - half), (1 - f) / (1 - f + half)
        case "defer_neg":
            late = estimates["late"]
            n = 2 - f + late
            return n, n * (1 - f) / (2 * (1 - f) + late)
        case "dfm":
            seen = estimates["seen"]
            return 1.0, (1 - f) * seen / (1 - f * seen)
        case _:
            return 1.0, 1.0


def _sentence(policy: PolicyName) -> str:
    return ", ".join(("none", *POLICY_KINDS[policy]))


def _codes(kinds: Iterable[KindName]) -> npt.NDArray[np.bool_]:
    """Returns a table over all codes of a byte, True for those of `kinds`."""
    table = np.zeros(256, np.bool_)
    table[[KIND_CODE[kind] for kind in kinds]] = True
    return table


_ALLOWED = {policy: _codes(("none", *kinds)) for policy, kinds in POLICY_KINDS.items()}
_TRAINED = _codes(kind for kind in KINDS if kind not in UNTRAINED_KINDS)
