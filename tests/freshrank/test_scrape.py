"""Metrics are read as the client library reads them, and figures of several processes are put together."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from freshrank.metrics import Buckets, Reading, exposition, registry
from freshrank.scrape import Figures, Scrape


def test_exposition_is_read_as_the_library_reads_it() -> None:
    odd = 'a "quoted" \\ back\\nslash,\n new line} {x="1"'
    readings = [
        Reading("freshrank_joiner_commits_total", 7),
        Reading("freshrank_joiner_unknown_fields_total", 3, (odd,)),
        Reading("freshrank_joiner_open_slates", -2.5e-7, ("0",)),
        Buckets("freshrank_ranker_latency_seconds", (0.001, 0.01), (4, 2, 1), 0.5),
    ]
    text = exposition(registry("joiner", lambda: readings))[0].decode()
    expected = {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert ("freshrank_joiner_unknown_fields_total", (odd,)) in expected
    assert Scrape.parse(text).samples == expected


def test_values_that_are_no_numbers_are_not_measured() -> None:
    scrape = Scrape.parse("a NaN\nb +Inf\n")
    assert (scrape.value("a"), scrape.value("b"), scrape.value("c")) == (None, math.inf, None)


def test_text_that_is_no_exposition_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sample: '<html>'"):
        Scrape.parse("<html>\n")


def test_figures_of_several_processes() -> None:
    figures = Figures(
        [Scrape({("x", ("a",)): 1.0, ("x", ("b",)): 2.0}), Scrape({("x", ("a",)): 5.0, ("y", ()): math.nan})]
    )
    assert (figures.number("x", "a"), figures.worst("x", "a"), figures.least("x", "a")) == (6.0, 5.0, 1.0)
    assert (figures.total("x"), figures.total("y"), figures.number("y")) == (8.0, None, None)
    assert figures.of("x") == [(("a",), 1.0), (("b",), 2.0), (("a",), 5.0)]
    assert figures.names("x") == ["x"]
