"""Weights of the label policies: expected gradients, fixed points, guards. Float64, worlds drawn at random."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.label_policy import (
    ESTIMATES,
    HEAD_MARGIN,
    MAX_FSIW_WEIGHT,
    POLICY_KINDS,
    RowTerms,
    row_terms,
    served_probability,
)
from stream.policy import POLICIES
from stream.schema import KIND_CODE, KindName, PolicyName

Array = npt.NDArray[np.float64]
NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
UNBIASED: tuple[PolicyName, ...] = tuple(name for name in NAMES if name not in ("vanilla", "vanilla_dup"))


@dataclass(frozen=True)
class World:
    """Impressions with known p and delta = P(y=1, later than the early look)."""

    p: Array
    late: Array

    @property
    def early(self) -> Array:
        return self.p - self.late

    def rows(self, policy: PolicyName) -> list[tuple[KindName, int, Array]]:
        """Returns (kind, label, rows per impression), from the joiner's own table."""
        table = POLICIES[policy]
        negative = 1 - self.p
        triggers = [
            (table.shown, 0, np.ones_like(self.p)),
            (table.early_positive, 1, self.early),
            (table.early_negative, 0, 1 - self.early),
            # A positive before the look is in the early row; without a look all of them come here.
            (table.positive, 1, self.late if table.early_positive else self.p),
            (table.close_early_positive, 1, self.early),
            (table.close_positive, 1, self.late if table.close_early_positive else self.p),
            (table.close_negative, 0, negative),
        ]
        return [(kind, label, share) for kind, label, share in triggers if kind is not None]

    def estimates(self, policy: PolicyName) -> dict[str, Array]:
        """Returns what exact heads would say."""
        exact = {"late": self.late, "negative": (1 - self.p) / (1 - self.early), "seen": self.early / self.p}
        return {name: exact[name] for name in ESTIMATES.get(policy, ())}

    def gradient(self, policy: PolicyName, f: Array) -> Array:
        """Returns the expected gradient on z per impression."""
        total = np.zeros_like(self.p)
        estimates: dict[str, Any] = self.estimates(policy)
        for kind, label, share in self.rows(policy):
            codes, labels = np.full(len(f), KIND_CODE[kind]), np.full(len(f), float(label))
            terms = row_terms(policy, codes, labels, f, **estimates)
            total += share * (terms.a_minus * f - terms.a_plus * (1 - f))
        return total

    def settled(self, policy: PolicyName) -> Array:
        """Returns where f comes to rest: the root of the expected gradient, by bisection."""
        low, high = np.full_like(self.p, 1e-6), np.full_like(self.p, 1 - 1e-6)
        for _ in range(60):
            middle = (low + high) / 2
            rises = self.gradient(policy, middle) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
        return (low + high) / 2


def world(seed: int = 0, n: int = 500) -> World:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.02, 0.95, n)
    return World(p, p * rng.uniform(0.02, 0.98, n))


def expected(policy: PolicyName, w: World, f: Array) -> Array:
    p, late = w.p, w.late
    a = f - late / 2
    seen = w.early / p
    table: dict[str, Array] = {
        "wait": f - p,
        "eager": f - p,
        "oracle": f - p,
        "vanilla": f - w.early,
        "vanilla_dup": (1 + late) * f - p,
        "fnw": (1 - f**2) * (f - p),
        "fnc": (1 + p) * f - p,
        "fnw_rn": 4 * (1 - f) * (f - p) / (2 - f),
        "fsiw": f - p,
        "es_dfm": (1 + late) * (f - p),
        "defer": 2 * f * (1 - f) * (f - p) / (a * (1 - a)),
        "defer_neg": (2 + late) * (2 - f + late) * (1 - f) * (f - p) / (2 * (1 - f) + late),
        "dfm": (1 - f) * seen * (f - p) / (1 - f * seen),
        "defuse": (1 + late) * (f - p),
    }
    return table[policy]


@pytest.mark.parametrize("policy", NAMES)
def test_the_expected_gradient_is_the_derived_one(policy: PolicyName) -> None:
    rng = np.random.default_rng(1)
    w = world()
    # Where the guards do not act: delta below f (`defer`), weights below the cap (`fsiw`).
    f = w.late + (0.99 - w.late) * rng.random(len(w.p)) if policy == "defer" else rng.uniform(0.01, 0.99, len(w.p))
    w = World(w.p, np.minimum(w.late, 0.85 * w.p)) if policy == "fsiw" else w
    np.testing.assert_allclose(w.gradient(policy, f), expected(policy, w, f), rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", NAMES)
def test_scores_settle_where_they_should(policy: PolicyName) -> None:
    w = world(seed=2)
    w = World(w.p, np.minimum(w.late, 0.85 * w.p)) if policy == "fsiw" else w
    score = served_probability(policy, w.settled(policy))
    truth = {"vanilla": w.early, "vanilla_dup": w.p / (1 + w.late)}.get(policy, w.p)
    assert score.sum() / truth.sum() == pytest.approx(1, abs=0.001)
    if policy == "fnc":
        # Beyond p = 0.9996 the map is cut; nobody here is that certain.
        assert w.p.max() < 0.9996
    slope = np.polyfit(np.log(truth / (1 - truth)), np.log(score / (1 - score)), 1)[0]
    assert slope == pytest.approx(1, abs=0.001)
    # A stable point: the gradient pushes back on both sides.
    settled = w.settled(policy)
    assert (w.gradient(policy, settled * 0.9) < 0).all()
    assert (w.gradient(policy, settled + 0.1 * (1 - settled)) > 0).all()


@pytest.mark.parametrize("policy", UNBIASED)
def test_a_model_that_learns_row_by_row_ends_at_the_truth(policy: PolicyName) -> None:
    """Rows drawn at random, weights from the moving f: a logit for each of three p, plain SGD."""
    rng = np.random.default_rng(3)
    p = np.array([0.1, 0.3, 0.6])
    w = World(p, p * 0.4)
    z, total = np.full_like(p, -1.0), np.zeros_like(p)
    estimates: dict[str, Any] = w.estimates(policy)
    for step in range(900):
        f = 1 / (1 + np.exp(-z))
        gradient = np.zeros_like(p)
        for kind, label, share in w.rows(policy):
            terms = row_terms(policy, np.full(3, KIND_CODE[kind]), np.full(3, float(label)), f, **estimates)
            gradient += rng.binomial(1_000, share) / 1_000 * (terms.a_minus * f - terms.a_plus * (1 - f))
        z -= 0.5 * gradient
        total += (step >= 400) * served_probability(policy, f)
    np.testing.assert_allclose(total / 500, p, rtol=0.02)


def test_eager_weighs_positives_by_their_ratio() -> None:
    kind = np.full(3, KIND_CODE["final"])
    terms = row_terms("eager", kind, np.array([1.0, 1.0, 0.0]), np.full(3, 0.5), ratio=np.array([0.25, 0.0, 9.0]))
    assert terms.a_plus.tolist() == [0.25, 0.0, 0.0]
    assert terms.a_minus.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("is_seen", [True, False])
def test_the_weights_of_dfm_are_the_gradient_of_its_likelihood(is_seen: bool) -> None:
    z = torch.linspace(-4, 4, 17, dtype=torch.float64, requires_grad=True)
    seen = np.linspace(0.05, 0.95, 17)
    f = z.sigmoid()
    log_likelihood = f.log() if is_seen else torch.log(1 - f * torch.from_numpy(seen))
    (-log_likelihood.sum()).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    kind = np.full(17, KIND_CODE["early_positive" if is_seen else "early_negative"])
    score = f.detach().numpy()
    terms = row_terms("dfm", kind, np.full(17, float(is_seen)), score, seen=seen)
    assert z.grad is not None
    np.testing.assert_allclose(terms.a_minus * score - terms.a_plus * (1 - score), z.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", NAMES)
def test_the_trainer_reads_exactly_the_kinds_that_the_joiner_sends(policy: PolicyName) -> None:
    assert POLICY_KINDS.keys() == POLICIES.keys()
    assert set(POLICY_KINDS[policy]) == POLICIES[policy].kinds
    f = np.full(2, 0.5)
    every: dict[str, Any] = {"late": f, "negative": f, "seen": f}
    for name, code in KIND_CODE.items():
        kind = np.array([KIND_CODE["none"], code])
        if name == "none" or name in POLICIES[policy].kinds:
            terms = row_terms(policy, kind, np.ones(2), f, **every)
            assert terms.a_plus[0] + terms.a_minus[0] == 0
            assert (terms.a_plus[1] + terms.a_minus[1] > 0) == (name not in ("none", "matured"))
        else:
            with pytest.raises(ValueError, match=f"kind: {name} is not allowed; policy {policy} sends none, "):
                row_terms(policy, kind, np.ones(2), f, **every)


@pytest.mark.parametrize("policy", ESTIMATES)
def test_a_policy_without_its_heads_is_refused(policy: PolicyName) -> None:
    with pytest.raises(ValueError, match=f"missing; policy {policy} needs it"):
        row_terms(policy, np.array([KIND_CODE["early_negative"]]), np.zeros(1), np.full(1, 0.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("policy", NAMES)
def test_adversarial_heads_and_scores_give_bounded_weights_and_are_counted(policy: PolicyName, dtype: Any) -> None:
    extremes = np.array([0.0, 1e-30, 1e-8, 0.5, 1 - 1e-8, 1.0])
    grid = np.stack(np.meshgrid(extremes, extremes, extremes, extremes), axis=-1).reshape(-1, 4).astype(dtype)
    f, late, negative, seen = grid.T
    for kind in POLICY_KINDS[policy]:
        for label in (0.0, 1.0):
            codes = np.full(len(f), KIND_CODE[kind])
            terms: RowTerms = row_terms(
                policy, codes, np.full(len(f), label, dtype), f, late=late, negative=negative, seen=seen
            )
            for weights in (terms.a_plus, terms.a_minus):
                assert weights.dtype == dtype
                assert np.isfinite(weights).all()
                assert (weights >= 0).all()
                assert weights.max() <= (MAX_FSIW_WEIGHT if policy == "fsiw" else 3.001)
            has_guard = policy in (*ESTIMATES, "fnc") and kind != "matured"
            assert (terms.num_guarded > 0) == has_guard


def test_only_what_is_out_of_range_counts_as_guarded() -> None:
    kind = np.full(4, KIND_CODE["early_negative"])
    f, negative = np.full(4, 0.5), np.array([0.0, HEAD_MARGIN, 0.7, 1.0])
    terms = row_terms("es_dfm", kind, np.zeros(4), f, late=np.full(4, 0.1), negative=negative)
    assert terms.num_guarded == 2
    np.testing.assert_allclose(terms.a_minus, 1.1 * np.array([HEAD_MARGIN, HEAD_MARGIN, 0.7, 1 - HEAD_MARGIN]))


def test_the_map_of_fnc_is_finite_and_monotone() -> None:
    for dtype in (np.float32, np.float64):
        served = served_probability("fnc", np.linspace(0, 1, 2_001, dtype=dtype))
        assert np.isfinite(served).all()
        assert (np.diff(served) >= 0).all()
        assert served[0] == 0
        assert served[-1] <= 1
    p = np.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(served_probability("fnc", p / (1 + p)), p)
    for policy in NAMES:
        if policy != "fnc":
            np.testing.assert_array_equal(served_probability(policy, p), p)
