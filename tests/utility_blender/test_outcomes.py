"""Outcomes: parts that belong together stay together, and replayed weights give the logged slate."""

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.outcomes import ABSENT, concat, slates, utilities


def test_taking_by_mask_and_by_index_is_the_same() -> None:
    outcomes = some_outcomes(20)
    mask = outcomes.tau_N > 0
    mask[::2] = False
    by_mask, by_index = outcomes.take(mask), outcomes.take(np.arange(1, 20, 2))
    assert by_mask.request_id == by_index.request_id == outcomes.request_id[1::2]
    assert by_mask.contexts == by_index.contexts
    assert by_mask.value_NCA.tolist() == outcomes.value_NCA[1::2].tolist()


def test_replaying_the_drawn_weights_gives_the_logged_slate_at_any_length() -> None:
    outcomes = some_outcomes(300)
    for factor in (1.0, 1e-3, 7.0):
        shown_NC = slates(utilities(outcomes, outcomes.weights_NT * factor), outcomes.size_N)
        assert (shown_NC == outcomes.shown_NC).all()


def test_utilities_are_those_of_serving_to_the_last_bit() -> None:
    outcomes = some_outcomes(50)
    blender = Blender(outcomes.tasks, ("home",), BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}}))
    utility_NC = utilities(outcomes, outcomes.weights_NT)
    for row in range(50):
        present_C = outcomes.present_NC[row]
        served_C = blender.utility(outcomes.scores_NCT[row][present_C], outcomes.weights_NT[row])
        assert utility_NC[row][present_C].tolist() == served_C.tolist()
        assert (utility_NC[row][~present_C] == -np.inf).all()


def test_ties_go_left_and_a_slate_may_be_empty() -> None:
    utility_NC = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    assert slates(utility_NC, np.array([2, 0])).tolist() == [[True, True, False], [False] * 3]


def test_parts_of_other_widths_and_actions_are_joined_with_padding() -> None:
    wide, narrow = some_outcomes(4, seed=1), some_outcomes(200, seed=2)
    narrow = narrow.take(narrow.position_NC[:, 5] == ABSENT)
    cut = {name: getattr(narrow, name)[:, :5] for name in ("scores_NCT", "position_NC")}
    narrow = type(narrow)(
        **{
            name: getattr(narrow, name)
            for name in narrow.__dataclass_fields__
            if name not in (*cut, "value_NCA", "actions")
        },
        **cut,
        value_NCA=narrow.value_NCA[:, :5, ::-1],
        actions=("hide", "click"),
    )
    both = concat([wide, narrow])
    assert both.actions == ("click", "order", "hide")
    assert both.num_requests == 4 + narrow.num_requests
    assert (both.position_NC[4:, 5] == ABSENT).all() and (both.scores_NCT[4:, 5] == 0).all()
    assert both.value_NCA[4:, :5, 0].tolist() == narrow.value_NCA[:, :, 1].tolist()
    assert both.value_NCA[4:, :5, 2].tolist() == narrow.value_NCA[:, :, 0].tolist()
    assert (both.value_NCA[4:, :, 1] == 0).all() and (both.value_NCA[:4, :, 2] == 0).all()
    assert (both.size_N == 2).all()


def test_a_column_that_only_one_part_has_is_missing_elsewhere() -> None:
    one, other = some_outcomes(2, seed=1), some_outcomes(3, seed=2)
    other.contexts.columns["user.age"] = [1.0, 2.0, 3.0]  # type: ignore[index]  # a plain dict here
    assert concat([one, other]).contexts.columns["user.age"] == [None, None, 1.0, 2.0, 3.0]


def test_an_index_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError):
        some_outcomes(2).take([5])
