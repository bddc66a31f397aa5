"""Every mistake in a configuration is one line that names its full path."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from freshrank.strict import ConfigError, build
from stream.schema import SchemaConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    low: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ValueError(f"low: {self.low} is not allowed; at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    mode: Literal["fast", "exact"] = "fast"
    is_on: bool = True
    limit: int | None = None
    folder: Path = Path()
    pair: tuple[int, int] = (0, 1)
    names: tuple[str, ...] = ()
    sizes: list[int] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    table: dict[str, dict[str, float]] = field(default_factory=dict)


def test_every_type_is_built() -> None:
    given = {
        "name": "a", "mode": "exact", "is_on": False, "limit": 3, "folder": "x/y", "pair": [2, 3], "names": ["p", "q"],
        "sizes": [1], "inner": {"low": 7, "share": 1}, "table": {"home": {"click": 2}},
    }  # fmt: skip
    assert build(Outer, given) == Outer(
        name="a", mode="exact", is_on=False, limit=3, folder=Path("x/y"), pair=(2, 3), names=("p", "q"),
        sizes=[1], inner=Inner(low=7, share=1.0), table={"home": {"click": 2.0}},
    )  # fmt: skip
    assert build(Outer, {"name": "a", "limit": None}) == Outer(name="a")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "run.name is missing"),
        ({"name": "a", "naem": 1}, "run.naem is not a setting; did you mean name?"),
        ({"name": "a", "zzz": 1}, "run.zzz is not a setting; allowed: name, mode, is_on, limit, folder, pair, names,"),
        ({"name": 3}, "run.name: 3 is not a string"),
        ({"name": "a", "mode": "slow"}, 'run.mode: "slow" is not one of fast, exact'),
        ({"name": "a", "is_on": 1}, "run.is_on: 1 is not true or false"),
        ({"name": "a", "limit": "soon"}, 'run.limit: "soon" is not an integer'),
        ({"name": "a", "limit": True}, "run.limit: true is not an integer"),
        ({"name": "a", "limit": 1.5}, "run.limit: 1.5 is not an integer"),
        ({"name": "a", "pair": [1]}, "run.pair: [1] must have 2 entries"),
        ({"name": "a", "pair": [1, "b"]}, 'run.pair[1]: "b" is not an integer'),
        ({"name": "a", "names": "pq"}, 'run.names: "pq" is not a list'),
        ({"name": "a", "sizes": [1, None]}, "run.sizes[1]: null is not an integer"),
        ({"name": "a", "inner": 5}, "run.inner: 5 is not a mapping of settings"),
        ({"name": "a", "inner": {"low": -1}}, "run.inner.low: -1 is not allowed; at least 0"),
        ({"name": "a", "inner": {"share": "much"}}, 'run.inner.share: "much" is not a number'),
        ({"name": "a", "table": {"home": {"click": "x"}}}, 'run.table.home.click: "x" is not a number'),
        ({"name": "a", "table": {1: {}}}, "run.table.1: the name 1 is not a string; quote it"),
        ([], "run: [] is not a mapping of settings"),
    ],
)
def test_mistake_is_one_line_with_its_path(given: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, given, "run")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_feature_may_be_written_short() -> None:
    task = {"action": "click", "window_ms": 1_000}
    features = {"user": {"city": "categorical"}, "item": {"tags": {"kind": "categorical", "many": True}}}
    schema = build(SchemaConfig, {"scenarios": ["home"], "tasks": {"click": task}, "features": features})
    assert schema.features.user["city"].kind == "categorical"
    assert schema.features.item["tags"].many
    with pytest.raises(ConfigError, match=r'^features\.user\.city\.kind: "word" is not one of categorical, numeric$'):
        build(SchemaConfig, {"scenarios": ["home"], "tasks": {"click": task}, "features": {"user": {"city": "word"}}})
