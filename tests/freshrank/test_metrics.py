"""One table declares every metric; a process can only show what stands in it."""

import re
import urllib.request
from collections.abc import Callable

import pytest

from freshrank.board import RATES, Scrape
from freshrank.exits import CommandError, ExitCode
from freshrank.metrics import Buckets, Reading, exposition, metric_table, read_counters, registry, serve_metrics
from stream.emission import JoinCounters

UNITS = (
    "_total",
    "_seconds",
    "_bytes",
    "_ratio",
    "_rows",
    "_positives",
    "_version",
    "_epoch",
    "_loss",
    "_norm",
    "_slates",
    "_feedback",
)


def test_every_metric_is_named_by_the_grammar_once_and_explained() -> None:
    table = metric_table()
    names = [row.name for row in table]
    assert len(names) == len(set(names))
    for row in table:
        assert re.fullmatch(r"freshrank_(joiner|trainer|ranker|agents|simulator)_[a-z0-9_]+", row.name)
        assert row.name.endswith(UNITS), row.name
        assert (row.type == "counter") == row.name.endswith("_total"), row.name
        assert row.help, row.name
        assert not {"user_id", "item_id", "request_id"} & set(row.labels)


def test_page_reads_only_metrics_of_the_table() -> None:
    names = {row.name for row in metric_table()}
    assert {name for counters in RATES.values() for name in counters} <= names


def test_counters_are_shown_under_their_names_and_help() -> None:
    counters = JoinCounters(slates=3, feedback_late=2)
    body, _ = exposition(registry("joiner", lambda: read_counters("joiner", counters)))
    scrape = Scrape.parse(body.decode())
    assert scrape.value("freshrank_joiner_slates_total") == 3
    assert scrape.value("freshrank_joiner_feedback_late_total") == 2
    assert b"# HELP freshrank_joiner_slates_total Impressions that were joined." in body


def test_histogram_is_cumulative_and_ends_at_infinity() -> None:
    read = [Buckets("freshrank_ranker_latency_seconds", (0.001, 0.01), (4, 2, 1), 0.5)]
    scrape = Scrape.parse(exposition(registry("ranker", lambda: read))[0].decode())
    name = "freshrank_ranker_latency_seconds"
    assert [scrape.value(f"{name}_bucket", bound) for bound in ("0.001", "0.01", "+Inf")] == [4, 6, 7]
    assert (scrape.value(f"{name}_count"), scrape.value(f"{name}_sum")) == (7, 0.5)


def test_metric_that_is_not_in_the_table_is_our_defect() -> None:
    with pytest.raises(KeyError, match="freshrank_joiner_surprise_total"):
        exposition(registry("joiner", lambda: [Reading("freshrank_joiner_surprise_total", 1)]))


def test_metrics_are_served_and_a_taken_port_is_a_sentence(free_port: Callable[[], int]) -> None:
    port = free_port()
    serve_metrics("joiner", f"127.0.0.1:{port}", lambda: [Reading("freshrank_joiner_commits_total", 5)])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert Scrape.parse(answer.read().decode()).value("freshrank_joiner_commits_total") == 5
    with pytest.raises(CommandError, match=f"Port {port} is taken") as caught:
        serve_metrics("joiner", f"127.0.0.1:{port}", lambda: [])
    assert caught.value.code is ExitCode.PORT_TAKEN
