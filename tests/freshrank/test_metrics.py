"""One table declares every metric; a process can only show what stands in it."""

import ast
import inspect
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest

from freshrank import agents, blend, join, probe_command, rank, simulate, stages, train
from freshrank.board import RATES
from freshrank.exits import CommandError, ExitCode
from freshrank.metrics import (
    OTHERS,
    Buckets,
    Reading,
    counter_rows,
    exposition,
    metric_table,
    read_counters,
    registry,
    serve_metrics,
)
from freshrank.scrape import Scrape
from freshrank.train import readings
from model.source import MemoryExampleSource
from ranker.freshness_stages import STAGES
from stream.emission import JoinCounters
from tests.model.example_log import new_trainer, partition_log
from tests.model.growing_log import GROWING, GROWING_MODEL, deals_from, growing_log

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
    "_ranks",
    "_partitions",
    "_requests",
    "_feedback",
)


def test_every_metric_is_named_by_the_grammar_once_and_explained() -> None:
    table = metric_table()
    names = [row.name for row in table]
    assert len(names) == len(set(names))
    for row in table:
        assert re.fullmatch(r"freshrank_(joiner|trainer|ranker|blender|agents|simulator|probe)_[a-z0-9_]+", row.name)
        assert row.name.endswith(UNITS), row.name
        assert (row.type == "counter") == row.name.endswith("_total"), row.name
        assert row.help, row.name
        assert not {"user_id", "item_id", "request_id"} & set(row.labels)


def test_page_reads_only_metrics_of_the_table() -> None:
    names = {row.name for row in metric_table()}
    assert {name for counters in RATES.values() for name in counters} <= names
    assert stages.STAGES == STAGES


@pytest.mark.parametrize(
    "process", [join, train, rank, blend, agents, simulate, probe_command], ids=lambda module: module.__name__
)
def test_process_shows_what_the_table_says_of_it_and_nothing_else(process: ModuleType) -> None:
    texts = texts_of(inspect.getsource(process))
    names = {text for text in texts if text.startswith("freshrank_")}
    [area] = {name.split("_")[1] for name in names}
    declared = {row.name for row in OTHERS if row.name.startswith(f"freshrank_{area}_")}
    whole = {name for name in names if "{}" not in name}
    filled = {name.replace("{}", text) for name in names - whole for text in texts}
    assert whole <= declared | {row.name for row in counter_rows(area)}, "shown, and not in the table"
    assert declared <= whole | filled, "in the table, and never shown"


def texts_of(source: str) -> set[str]:
    """Returns the strings of a module; what is filled in later is `{}`."""
    nodes = list(ast.walk(ast.parse(source)))
    templates = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for template in templates for part in template.values}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in parts]
    return {node.value for node in constants if isinstance(node.value, str)} | {
        "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in template.values)
        for template in templates
    }


def test_counters_are_shown_under_their_names_and_help() -> None:
    counters = JoinCounters(slates=3, feedback_late=2)
    body, _ = exposition(registry("joiner", lambda: read_counters("joiner", counters)))
    scrape = Scrape.parse(body.decode())
    assert scrape.value("freshrank_joiner_slates_total") == 3
    assert scrape.value("freshrank_joiner_feedback_late_total") == 2
    assert b"# HELP freshrank_joiner_slates_total Impressions that were joined." in body


def test_trainer_shows_a_scenario_that_was_added() -> None:
    log = {0: growing_log(1, 12, deals_from(9))}
    trainer = new_trainer(source=MemoryExampleSource(log), schema=GROWING, model=GROWING_MODEL)
    trainer.run(lambda: False)
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(trainer)))[0].decode())
    assert scrape.value("freshrank_trainer_scenarios_added_total") == 1
    assert scrape.value("freshrank_trainer_unknown_rows_total") == trainer.stats.unknown_rows > 0
    shown = {labels for name, labels in scrape.samples if name == "freshrank_trainer_window_rows"}
    assert {("deals", task) for task in GROWING.tasks} <= shown


def test_trainer_shows_the_ids_of_every_field() -> None:
    trainer = new_trainer(source=MemoryExampleSource({0: partition_log(seed=1, num_messages=12)}))
    trainer.run(lambda: False)
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(trainer)))[0].decode())

    def shown(what: str) -> dict[str, int]:
        name = f"freshrank_trainer_table_{what}"
        totals: Counter[str] = Counter()
        for (sample, labels), value in scrape.samples.items():
            if sample == name:
                totals[labels[-1]] += int(value)
        return totals

    table = trainer.learner.trained.table
    assert shown("rows").keys() == {field.name for field in table.layout.fields}
    assert sum(shown("rows").values()) == len(trainer.learner.trained.serving_full()["rows.keys"]) > 0
    assert shown("admissions_total") == shown("rows"), "nothing was evicted"
    assert set(shown("evictions_total").values()) == {0}
    for field, lookups in shown("lookups_total").items():
        without_row = shown("default_lookups_total")[field] + shown("missing_lookups_total")[field]
        assert 0 < without_row <= lookups, field
    table.evict(trainer.learner.trained.serving_full()["rows.keys"].numpy())
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(trainer)))[0].decode())
    assert shown("evictions_total") == shown("admissions_total")


def test_trainer_shows_what_each_task_weighs() -> None:
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(new_trainer())))[0].decode())
    assert [scrape.value("freshrank_trainer_task_weight_ratio", task) for task in ("click", "order")] == [1.0, 1.0]


def test_histogram_is_cumulative_and_ends_at_infinity() -> None:
    read = [Buckets("freshrank_ranker_latency_seconds", (0.001, 0.01), (4, 2, 1), 0.5)]
    scrape = Scrape.parse(exposition(registry("ranker", lambda: read))[0].decode())
    name = "freshrank_ranker_latency_seconds"
    assert [scrape.value(f"{name}_bucket", bound) for bound in ("0.001", "0.01", "+Inf")] == [4, 6, 7]
    assert (scrape.value(f"{name}_count"), scrape.value(f"{name}_sum")) == (7, 0.5)


def test_histogram_by_label_is_one_family() -> None:
    name = "freshrank_ranker_freshness_stage_seconds"
    read = [
        Buckets(name, (0.1, 1.0), (2, 1, 0), 0.7, ("joined",)),
        Buckets(name, (0.1, 1.0), (0, 0, 3), 9.0, ("served",)),
    ]
    body = exposition(registry("ranker", lambda: read))[0].decode()
    assert body.count(f"# TYPE {name} histogram") == 1
    scrape = Scrape.parse(body)
    assert [scrape.value(f"{name}_bucket", bound, "joined") for bound in ("0.1", "1.0", "+Inf")] == [2, 3, 3]
    assert [scrape.value(f"{name}_bucket", bound, "served") for bound in ("0.1", "1.0", "+Inf")] == [0, 0, 3]
    assert (scrape.value(f"{name}_count", "served"), scrape.value(f"{name}_sum", "served")) == (3, 9.0)


def test_metric_that_is_not_in_the_table_is_our_defect() -> None:
    with pytest.raises(KeyError, match="freshrank_joiner_surprise_total"):
        exposition(registry("joiner", lambda: [Reading("freshrank_joiner_surprise_total", 1)]))


def test_metrics_are_served_and_a_taken_port_is_a_sentence(free_port: Callable[[], int]) -> None:
    port = free_port()
    serve_metrics("joiner", f"127.0.0.1:{port}", lambda: [Reading("freshrank_joiner_commits_total", 5)], lambda: None)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert Scrape.parse(answer.read().decode()).value("freshrank_joiner_commits_total") == 5
    with pytest.raises(CommandError, match=f"Port {port} is taken") as caught:
        serve_metrics("joiner", f"127.0.0.1:{port}", lambda: [], lambda: None)
    assert caught.value.code is ExitCode.PORT_TAKEN
