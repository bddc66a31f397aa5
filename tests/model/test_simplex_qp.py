"""The small quadratic programme: against a grid, a projected-gradient solver and the optimality conditions."""

import numpy as np
import numpy.typing as npt
import pytest

from model.simplex_qp import equal_mix, onto_simplex, relaxed_mix, shortest_mix

Array = npt.NDArray[np.float64]
KINDS = ("random", "parallel", "opposite", "duplicate", "zero", "scales", "few_directions")


def gradients(rng: np.random.Generator, num_tasks: int, kind: str) -> Array:
    grad_TP = rng.normal(size=(num_tasks, 5))
    if kind == "parallel":
        grad_TP[1] = 3.0 * grad_TP[0]
    elif kind == "opposite":
        grad_TP[1] = -0.4 * grad_TP[0]
    elif kind == "duplicate":
        grad_TP[-1] = grad_TP[0]
    elif kind == "zero":
        grad_TP[0] = 0.0
    elif kind == "scales":
        grad_TP *= 10.0 ** rng.uniform(-4, 4, (num_tasks, 1))
    elif kind == "few_directions":
        grad_TP = np.outer(rng.normal(size=num_tasks), grad_TP[0])
    return grad_TP


def bounds(rng: np.random.Generator, num_tasks: int) -> Array:
    share = rng.choice([0.0, 0.3, 0.9, 1.0])
    bound_T = rng.dirichlet(np.ones(num_tasks)) * share
    bound_T[rng.random(num_tasks) < 0.3] = 0.0
    return bound_T


def cases(num: int, num_tasks: int) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng([num, num_tasks])
    return [(gradients(rng, num_tasks, kind), bounds(rng, num_tasks)) for kind in KINDS for _ in range(num)]


def objective(grad_TP: Array, weight_T: Array) -> float:
    """Returns the squared length of the mix, relative to the gradients'."""
    return float(((weight_T @ grad_TP) ** 2).sum() / (grad_TP**2).sum())


def projected_gradient(grad_TP: Array, bound_T: Array) -> Array:
    """A plain solver: gradient steps, each followed by bisection for the nearest point that keeps the constraints."""
    gram_TT = grad_TP @ grad_TP.T / (grad_TP**2).sum()
    weight_T = bound_T + (1 - bound_T.sum()) / len(bound_T)
    for _ in range(400):
        target_T = weight_T - gram_TT @ weight_T
        low, high = -2.0, 2.0
        for _ in range(50):
            level = (low + high) / 2
            low, high = (level, high) if np.maximum(target_T - level, bound_T).sum() > 1 else (low, level)
        weight_T = np.maximum(target_T - high, bound_T)
    return weight_T


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4])
def test_the_exact_solution_keeps_its_bounds_and_is_optimal(num_tasks: int) -> None:
    for grad_TP, bound_T in cases(20, max(num_tasks, 2)):
        grad_TP, bound_T = grad_TP[:num_tasks], bound_T[:num_tasks]
        if not (grad_TP**2).sum():
            continue
        gram_TT = grad_TP @ grad_TP.T
        weight_T = shortest_mix(gram_TT, bound_T)
        assert (weight_T >= bound_T).all() and weight_T.sum() == pytest.approx(1.0, abs=1e-9)
        # Karush, Kuhn and Tucker: no weight can move to where the slope is lower, and that is enough (it is convex).
        slope_T = gram_TT @ weight_T / np.trace(gram_TT)
        can_fall_T = weight_T > bound_T + 1e-7
        assert not can_fall_T.any() or slope_T[can_fall_T].max() <= slope_T.min() + 1e-7


def test_it_is_never_above_a_general_solver() -> None:
    for num_tasks in (2, 3, 4):
        for grad_TP, bound_T in cases(2, num_tasks):
            other_T = projected_gradient(grad_TP, bound_T)
            assert abs(other_T.sum() - 1) < 1e-6 and (other_T >= bound_T).all()
            exact = objective(grad_TP, shortest_mix(grad_TP @ grad_TP.T, bound_T))
            assert exact <= objective(grad_TP, other_T) + 1e-9


def test_two_tasks_have_the_closed_form_and_a_grid_finds_nothing_better() -> None:
    for grad_TP, _ in cases(20, 2):
        one, two = grad_TP
        length = ((one - two) ** 2).sum()
        closed = 0.5 if length == 0 else float(np.clip((two - one) @ two / length, 0, 1))
        weight_T = shortest_mix(grad_TP @ grad_TP.T, np.zeros(2))
        assert objective(grad_TP, weight_T) == pytest.approx(
            objective(grad_TP, np.array([closed, 1 - closed])), abs=1e-13
        )
        if length > 1e-3 * (grad_TP**2).sum():
            assert weight_T[0] == pytest.approx(closed, abs=1e-9)
        grid = np.linspace(0, 1, 2_001)
        assert objective(grad_TP, weight_T) <= min(objective(grad_TP, np.array([a, 1 - a])) for a in grid) + 1e-14


def test_three_tasks_against_a_grid() -> None:
    steps = [(a / 40, b / 40) for a in range(41) for b in range(41 - a)]
    grid_X3 = np.array([(a, b, 1 - a - b) for a, b in steps])
    for grad_TP, bound_T in cases(10, 3):
        grid = bound_T + grid_X3 * (1 - bound_T.sum())
        best = ((grid @ grad_TP) ** 2).sum(axis=1).min() / (grad_TP**2).sum()
        assert objective(grad_TP, shortest_mix(grad_TP @ grad_TP.T, bound_T)) <= best + 1e-13


def test_the_published_two_steps_are_exact_for_two_tasks_and_never_better() -> None:
    worse = 0.0
    for num_tasks in (2, 3, 4):
        for grad_TP, bound_T in cases(20, num_tasks):
            gram_TT = grad_TP @ grad_TP.T
            relaxed_T = relaxed_mix(gram_TT, bound_T)
            assert (relaxed_T >= bound_T).all() and relaxed_T.sum() == pytest.approx(1.0, abs=1e-9)
            excess = objective(grad_TP, relaxed_T) - objective(grad_TP, shortest_mix(gram_TT, bound_T))
            assert excess >= -1e-12
            if num_tasks == 2:
                assert excess <= 1e-12
            worse = max(worse, excess)
    assert worse > 1e-3


def test_equal_gradients_share_equally_and_none_at_all_too() -> None:
    assert shortest_mix(np.ones((3, 3)), np.zeros(3)) == pytest.approx(np.full(3, 1 / 3))
    assert shortest_mix(np.zeros((4, 4)), np.zeros(4)).tolist() == [0.25] * 4
    assert relaxed_mix(np.zeros((2, 2)), np.array([0.6, 0.0])).tolist() == [0.6, 0.4]
    assert shortest_mix(np.ones((2, 2)), np.zeros(2), 0.5) == pytest.approx(np.full(2, 0.25))


def test_bounds_that_fill_the_total_are_the_weights() -> None:
    bound_T = np.array([0.5, 0.2, 0.3])
    gram_TT = np.diag([1.0, 2.0, 3.0])
    for solve in (shortest_mix, relaxed_mix):
        assert solve(gram_TT, bound_T) == pytest.approx(bound_T, abs=1e-12)
    assert equal_mix(bound_T) == pytest.approx(bound_T)


def test_the_projection_is_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        point_T, total = rng.normal(size=3), float(rng.uniform(0.1, 2))
        nearest_T = onto_simplex(point_T, total)
        assert (nearest_T >= 0).all() and nearest_T.sum() == pytest.approx(total)
        others_X3 = rng.dirichlet(np.full(3, 0.5), 2_000) * total
        assert ((nearest_T - point_T) ** 2).sum() <= ((others_X3 - point_T) ** 2).sum(axis=1).min() + 1e-12
