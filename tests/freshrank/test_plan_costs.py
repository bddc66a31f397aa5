"""What plans rest on: every figure has a source, and the packaged file is what the benchmarks' results say."""

import pytest

from benchmarks import per_core
from freshrank.plan_costs import Cost, Costs, decode_costs, packaged_costs


def test_the_packaged_figures_are_those_of_the_results() -> None:
    assert per_core.changes(packaged_costs(), per_core.costs()) == []
    assert per_core.TARGET.read_bytes() == per_core.written(per_core.costs()), "run: python -m benchmarks.per_core"


@pytest.mark.parametrize("name", packaged_costs().names())
def test_every_figure_says_where_it_is_from(name: str) -> None:
    cost = packaged_costs().about(name)
    assert cost.value > 0 and cost.unit and len(cost.source) > 5
    assert bool(cost.command) == (cost.kind == "measured")


@pytest.mark.parametrize(
    ("kind", "source", "command"), [("measured", "P3", ""), ("measured", " ", "make bench"), ("assumed", "", "")]
)
def test_a_figure_without_a_source_is_refused(kind: str, source: str, command: str) -> None:
    text = f'{{"a": {{"value": 1, "unit": "ms", "kind": "{kind}", "source": "{source}", "command": "{command}"}}}}'
    with pytest.raises(ValueError, match="source"):
        decode_costs(text.encode())


def test_a_figure_that_the_results_do_not_have_names_it() -> None:
    with pytest.raises(KeyError, match="P99"):
        per_core.cost(per_core.Taken("ms", "P99", None, float), {}, {})
    with pytest.raises(KeyError, match="nothing like"):
        per_core.cost(per_core.Quoted("ms", "README.md", "no such words as these", 1.0, "make"), {}, {})


def test_changes_are_told_one_by_one() -> None:
    old = Costs(
        {name: Cost(value=1.0, unit="ms", kind="assumed", source="a guess") for name in ("same", "gone", "new")}
    )
    new = {"same": old.about("same"), "new": Cost(value=2.0, unit="ms", kind="assumed", source="a better guess")}
    assert per_core.changes(old, new) == ["gone: gone", "new: 1.0 -> 2 ms"]
