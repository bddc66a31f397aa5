"""Contexts become numbers: what was known gets its column, what was not is zeros, nothing is refused."""

import json
import math

import numpy as np

from utility_blender.contexts import MIN_COUNT, ContextEncoder, Contexts, fit_encoder


def contexts(num: int = 60) -> Contexts:
    return Contexts(
        scenario=["home" if row % 2 else "search" for row in range(num)],
        columns={
            "context.mood": ["buy" if row % 3 else "look" for row in range(num)],
            "user.age": [float(row) if row else None for row in range(num)],
            "user.rare": ["often"] * (num - 1) + ["once"],
        },
    )


def test_each_known_value_has_a_column_and_numbers_are_standardised() -> None:
    encoder = fit_encoder(contexts(), numeric=["user.age"])
    assert encoder.values == {"context.mood": ("buy", "look"), "user.rare": ("often",)}
    ages = np.arange(1.0, 60.0)
    assert encoder.numbers == {"user.age": (float(ages.mean()), float(ages.std()))}
    row = encoder.encode(Contexts(scenario=["search"], columns={"context.mood": ["look"], "user.age": [40.0]}))
    assert encoder.width == 6 and row.shape == (1, 6)
    assert row[0, :4].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert math.isclose(row[0, 5], (40.0 - ages.mean()) / ages.std())


def test_what_was_never_met_is_zeros_and_numbers_stop_at_five_deviations() -> None:
    encoder = fit_encoder(contexts(), numeric=["user.age"])
    odd = {"context.mood": ["sing", None, 7], "user.age": [math.nan, "old", 1e9], "user.new": [1, 2, 3]}
    x_NX = encoder.encode(Contexts(scenario=["shop", "", "home"], columns=odd))
    assert x_NX[:2].tolist() == [[0.0] * 6] * 2
    assert x_NX[2].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 5.0]
    assert encoder.encode(Contexts(scenario=[], columns={})).shape == (0, 6)


def test_values_met_too_rarely_have_no_column() -> None:
    for count, known in ((MIN_COUNT - 1, ()), (MIN_COUNT, ("x",))):
        encoder = fit_encoder(Contexts(scenario=["home"] * count, columns={"user.a": ["x"] * count}))
        assert encoder.values == {"user.a": known}


def test_a_number_that_never_varies_or_is_never_there_is_zero() -> None:
    given = Contexts(scenario=["home"] * 3, columns={"user.a": [2.0] * 3, "user.b": [None] * 3})
    encoder = fit_encoder(given, numeric=["user.a", "user.b"])
    assert encoder.encode(given)[:, 1:].tolist() == [[0.0, 0.0]] * 3


def test_a_boolean_is_a_category_of_its_own_name() -> None:
    given = Contexts(scenario=["home"] * 40, columns={"user.new": [True, False] * 20})
    assert fit_encoder(given).values == {"user.new": ("False", "True")}


def test_a_list_has_the_columns_of_all_its_values_and_integers_are_what_the_log_calls_them() -> None:
    given = Contexts(scenario=["home"] * 40, columns={"user.likes": [["3", "7"], ["3"]] * 20})
    encoder = fit_encoder(given)
    assert encoder.values == {"user.likes": ("3", "7")}
    asked = Contexts(scenario=["home"] * 4, columns={"user.likes": [[3, 7], [7], [], None]})
    assert encoder.encode(asked)[:, 1:].tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


def test_an_encoder_survives_json_and_taking_keeps_rows_together() -> None:
    encoder = fit_encoder(contexts(), numeric=["user.age"])
    again = ContextEncoder.from_dict(json.loads(json.dumps(encoder.as_dict())))
    assert again == encoder
    taken = contexts().take([3, 0])
    assert taken.scenario == ["home", "search"] and taken.columns["user.age"] == [3.0, None]
    assert again.encode(taken).tolist() == encoder.encode(contexts())[[3, 0]].tolist()
