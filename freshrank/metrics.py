"""Every metric of every process in one table, and the collector that fills it from the rooms' plain counters.

The rooms below know no Prometheus: they keep small dataclasses of numbers. A process hands `serve_metrics` a function
that reads them, which is called at scrape time. `docs/metrics.md` lists the table.
"""

import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_type_hints
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, make_wsgi_app, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from freshrank.doors import api_tokens, with_tokens
from freshrank.exits import CommandError, ExitCode
from freshrank.field_docs import field_texts
from freshrank.health import with_health

if TYPE_CHECKING:
    from ranker.stats import Histogram

MetricType = Literal["counter", "gauge", "histogram"]


class MetricRow(NamedTuple):
    """One line of the table. `labels` take values from small sets: a scenario, a task, a reason; never an id."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    help: str


class Reading(NamedTuple):
    """The value of one metric now; `labels` in the order of its row."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Buckets(NamedTuple):
    """A histogram now: counts by bucket, the last one open-ended, and the sum of all values; `labels` as its row's."""

    name: str
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    labels: tuple[str, ...] = ()

    @classmethod
    def of_ms(cls, name: str, histogram: "Histogram", labels: tuple[str, ...] = ()) -> "Buckets":
        """Returns a histogram of ms in seconds."""
        bounds_s = tuple(bound / 1_000 for bound in histogram.bounds)
        return cls(name, bounds_s, tuple(histogram.counts), histogram.total / 1_000, labels)


Read = Callable[[], Iterable[Reading | Buckets]]
"""Reads a process's counters; called at scrape time, in the scraper's thread."""

_CELL = ("task", "scenario")
_COHORT = (*_CELL, "cohort")
_FIELD = ("field",)
OTHERS = (
    MetricRow("freshrank_joiner_commits_total", "counter", (), "Transactions committed."),
    MetricRow("freshrank_joiner_aborted_total", "counter", (), "Transactions aborted by the broker and written again."),
    MetricRow("freshrank_joiner_open_slates", "gauge", ("partition",), "Slates remembered: open, or to know copies."),
    MetricRow("freshrank_joiner_pending_feedback", "gauge", ("partition",), "Feedback waiting for its impression."),
    MetricRow(
        "freshrank_joiner_frozen_slates", "gauge", ("partition",), "Of the slates remembered, those only on disk."
    ),
    MetricRow("freshrank_joiner_snapshots_total", "counter", (), "Snapshots taken of the state of a partition."),
    MetricRow(
        "freshrank_joiner_snapshots_rejected_total", "counter", (), "Snapshots damaged, so that more is replayed."
    ),
    MetricRow("freshrank_joiner_unknown_fields_total", "counter", ("field",), "Fields met that the schema lacks."),
    MetricRow("freshrank_joiner_watermark_age_seconds", "gauge", ("partition",), "Now minus the watermark of a pair."),
    MetricRow("freshrank_trainer_snapshots_total", "counter", ("kind",), "Snapshots that went live: full or delta."),
    MetricRow("freshrank_trainer_publish_failures_total", "counter", ("reason",), "Snapshots that did not go live."),
    MetricRow(
        "freshrank_trainer_gate_windows_total",
        "counter",
        ("state",),
        "Windows of data and labels, by what the gate said: `pass`, `warn`, `block` or `not_judged`.",
    ),
    MetricRow("freshrank_trainer_gate_blocks_total", "counter", ("check",), "Findings of the gate that blocked."),
    MetricRow(
        "freshrank_trainer_gate_state_ratio", "gauge", ("state",), "1 for what the gate says now, 0 for the others."
    ),
    MetricRow("freshrank_trainer_gate_holding_ratio", "gauge", (), "1 while examples are looked at and not learned."),
    MetricRow(
        "freshrank_trainer_gate_frozen_ratio", "gauge", (), "1 while nothing is published, after many rejections."
    ),
    MetricRow("freshrank_trainer_released_version", "gauge", (), "Version that the stable lane serves."),
    MetricRow("freshrank_trainer_version", "gauge", (), "Version that is live by this trainer."),
    MetricRow("freshrank_trainer_epoch", "gauge", (), "Epoch under which this trainer publishes."),
    MetricRow("freshrank_trainer_payload_bytes", "gauge", (), "Size of the last snapshot."),
    MetricRow("freshrank_trainer_publish_seconds", "gauge", (), "How long the last publish kept from training."),
    MetricRow("freshrank_trainer_checkpoint_seconds", "gauge", (), "How long the last checkpoint kept from training."),
    MetricRow("freshrank_trainer_ranks", "gauge", (), "Processes that train the model together."),
    MetricRow("freshrank_trainer_partitions", "gauge", (), "Partitions of examples that this one of them reads."),
    MetricRow(
        "freshrank_trainer_collectives_seconds_total",
        "counter",
        (),
        "Time in which this one of them spoke to the others or waited for them.",
    ),
    MetricRow("freshrank_trainer_loss", "gauge", (), "Of the last step."),
    MetricRow("freshrank_trainer_grad_norm", "gauge", (), "Of the last step, dense, before clipping."),
    MetricRow(
        "freshrank_trainer_guarded_ratio",
        "gauge",
        (),
        "Share of the labels weighed by their policy whose estimate or weight was cut to its range; alarm above 1 %.",
    ),
    MetricRow("freshrank_trainer_teacher_held_total", "counter", (), "Labels held to the score of an older model."),
    MetricRow(
        "freshrank_trainer_teacher_masked_total",
        "counter",
        ("reason",),
        "Labels that were not, by reason: no_teacher, resting, new_scenario, unknown_id, unscored, unknown_version,"
        " denied_version, not_finite.",
    ),
    MetricRow("freshrank_trainer_teacher_alarms_total", "counter", (), "Times it was let rest: the loss had risen."),
    MetricRow("freshrank_trainer_teacher_age_seconds", "gauge", (), "Mean age of the scores last held to."),
    MetricRow("freshrank_trainer_watermark_age_seconds", "gauge", (), "Now minus the watermark learned."),
    MetricRow("freshrank_trainer_window_rows", "gauge", _CELL, "Final labels in the metric window."),
    MetricRow("freshrank_trainer_window_positives", "gauge", _CELL, "Positive ones among them."),
    MetricRow("freshrank_trainer_task_weight_ratio", "gauge", ("task",), "Weight of the task's loss in the last step."),
    MetricRow("freshrank_trainer_normalized_entropy_ratio", "gauge", _CELL, "Below 1 beats knowing the mean rate."),
    MetricRow("freshrank_trainer_auc_ratio", "gauge", _CELL, "Progressive AUC over the metric window."),
    MetricRow("freshrank_trainer_calibration_ratio", "gauge", _CELL, "Mean score over mean label in the window."),
    MetricRow("freshrank_trainer_table_rows", "gauge", _FIELD, "Values of a field that have an embedding row now."),
    MetricRow("freshrank_trainer_table_admissions_total", "counter", _FIELD, "Values that were given a row."),
    MetricRow(
        "freshrank_trainer_table_evictions_total",
        "counter",
        (*_FIELD, "cause"),
        "Values whose row was removed: `expired`, `full` (too many rows), or `asked` (named by a caller).",
    ),
    MetricRow(
        "freshrank_trainer_table_occupancy_ratio",
        "gauge",
        _FIELD,
        "Rows over `max_rows`, of fields that have a limit; field `all` is the limit of all fields together.",
    ),
    MetricRow("freshrank_trainer_table_lookups_total", "counter", _FIELD, "Values looked up to learn from them."),
    MetricRow("freshrank_trainer_table_default_lookups_total", "counter", _FIELD, "Those found without a row yet."),
    MetricRow("freshrank_trainer_table_missing_lookups_total", "counter", _FIELD, "Those that an event left out."),
    MetricRow("freshrank_trainer_hot_rows", "gauge", (), "Embedding rows in the memory of this process."),
    MetricRow("freshrank_trainer_row_store_rows", "gauge", (), "Rows in the row store, older ones of some included."),
    MetricRow("freshrank_trainer_row_store_written_total", "counter", (), "Rows written into it."),
    MetricRow("freshrank_trainer_row_store_generations_total", "counter", (), "Times all of them were written anew."),
    MetricRow("freshrank_trainer_cold_rows", "gauge", (), "Those of this process that left memory: `hot_rows` is set."),
    MetricRow("freshrank_trainer_cold_lookups_total", "counter", (), "Values looked for among these, by batch."),
    MetricRow("freshrank_trainer_cold_hits_total", "counter", (), "Those that were there."),
    MetricRow("freshrank_trainer_cooled_rows_total", "counter", (), "Rows that left memory."),
    MetricRow("freshrank_trainer_cold_store_seconds_total", "counter", (), "Time spent waiting for their store."),
    MetricRow(
        "freshrank_trainer_scenario_attention_ratio",
        "gauge",
        ("scenario", "other"),
        "Share of the attention of a scenario that another one gets; where the network has one (HiNet).",
    ),
    MetricRow(
        "freshrank_trainer_gate_ratio",
        "gauge",
        ("gate", "scenario", "task", "expert"),
        "Mean weight that a gate gives to an expert on recent rows, where it has a choice. Task `all`: of no task.",
    ),
    MetricRow("freshrank_ranker_version", "gauge", (), "Version being served; 0 before the first."),
    MetricRow("freshrank_ranker_blender_version", "gauge", (), "Newest weights being served; 0: the config's."),
    MetricRow("freshrank_ranker_blender_share_ratio", "gauge", (), "Share of the requests that they serve."),
    MetricRow(
        "freshrank_ranker_blender_weight_ratio",
        "gauge",
        ("scenario", "task"),
        "Weights of the last ranking of a scenario; where it explored, those drawn around.",
    ),
    MetricRow("freshrank_ranker_exploring_ratio", "gauge", (), "1 while requests explore, 0 while none may."),
    MetricRow(
        "freshrank_ranker_score_shift_ratio",
        "gauge",
        _CELL,
        "PSI of the scores against those that the learned weights come from; alarm above 0.1, fallback above 0.25.",
    ),
    MetricRow("freshrank_ranker_model_age_seconds", "gauge", (), "Now minus the watermark of the version served."),
    MetricRow(
        "freshrank_ranker_freshness_seconds",
        "histogram",
        (),
        "From an action to the first request scored by a version that had learned it.",
    ),
    MetricRow(
        "freshrank_ranker_freshness_stage_seconds",
        "histogram",
        ("stage",),
        "Its parts, which add up to it, by what ends them: `joined`, `trained`, `published`, `applied`, `served`.",
    ),
    MetricRow(
        "freshrank_ranker_freshness_negative_total",
        "counter",
        ("stage",),
        "Stages counted as 0 because the clocks of two machines made them negative.",
    ),
    MetricRow(
        "freshrank_ranker_freshness_quantile_seconds", "gauge", ("quantile",), "The same, newest 10,000 actions."
    ),
    MetricRow(
        "freshrank_ranker_churn_ratio",
        "gauge",
        ("figure",),
        "Recent requests ranked by a version and the one before, the same blender weights, mean over 60 swaps: share "
        "with another first item (`top1_changed`) and rank-biased overlap (`rbo`, 1 = nothing moved).",
    ),
    MetricRow("freshrank_ranker_latency_seconds", "histogram", (), "Time to answer a rank request."),
    MetricRow("freshrank_ranker_delivery_failures_total", "counter", (), "Events queued and then given up."),
    MetricRow("freshrank_blender_version", "gauge", (), "Version of the weights that is pointed to; 0: the config's."),
    MetricRow("freshrank_blender_share_ratio", "gauge", (), "Share of the requests that version serves."),
    MetricRow("freshrank_blender_round_requests", "gauge", (), "Explored requests of the present round."),
    MetricRow("freshrank_blender_round_missing_requests", "gauge", (), "Explored requests until it is learned from."),
    MetricRow(
        "freshrank_blender_lift_ratio",
        "gauge",
        ("bound",),
        "Lift of the last candidate over the weights in service, off-policy, as a share of their value; bound is "
        "`estimate` or `lower` (95 %).",
    ),
    MetricRow("freshrank_agents_online_rows", "gauge", _CELL, "Settled labels in the window, with the score served."),
    MetricRow("freshrank_agents_online_positives", "gauge", _CELL, "Positive ones among them."),
    MetricRow(
        "freshrank_agents_online_expected_positives",
        "gauge",
        _CELL,
        "Sum of their scores: over the positives it is the calibration of the window, also of several agents'.",
    ),
    MetricRow("freshrank_agents_online_ctr_ratio", "gauge", _CELL, "Positives over rows of the window."),
    MetricRow("freshrank_agents_online_auc_ratio", "gauge", _CELL, "AUC of the scores served, over the window."),
    MetricRow(
        "freshrank_agents_online_calibration_ratio",
        "gauge",
        _COHORT,
        "Mean score served over mean label, of the model versions of a cohort: `current` or `previous`.",
    ),
    MetricRow("freshrank_agents_cohort_auc_ratio", "gauge", _COHORT, "AUC of the scores that those versions gave."),
    MetricRow("freshrank_agents_cohort_rows", "gauge", _COHORT, "Settled labels of those versions."),
    MetricRow("freshrank_agents_cohort_positives", "gauge", _COHORT, "Positive ones among them."),
    MetricRow("freshrank_agents_cohort_expected_positives", "gauge", _COHORT, "Sum of their scores."),
    MetricRow("freshrank_agents_cohort_version", "gauge", _COHORT, "Newest version of the cohort."),
    MetricRow(
        "freshrank_agents_drift_alarms_total",
        "counter",
        _CELL,
        "Times the calibration of what is served changed (ADWIN).",
    ),
    MetricRow(
        "freshrank_probe_freshness_seconds",
        "histogram",
        (),
        "From the probe's own actions to a ranking by a version whose watermark has passed them, over HTTP.",
    ),
    MetricRow("freshrank_simulator_rate_requests", "gauge", (), "Mean rate of the arrivals now, per second."),
    MetricRow("freshrank_simulator_bots_ratio", "gauge", (), "Share of the requests that are bots' now."),
    MetricRow("freshrank_simulator_open_ratio", "gauge", ("scenario",), "1 for a scenario that has come up, else 0."),
    MetricRow(
        "freshrank_simulator_utility_ratio",
        "gauge",
        ("ranking",),
        "True expected utility per request, recent: ranking is `served`, `random` or `oracle`.",
    ),
    MetricRow(
        "freshrank_simulator_lift_ratio",
        "gauge",
        ("window",),
        "(served - random) / (oracle - random) of the true expected utility; window is `recent` or `lifetime`.",
    ),
)
"""What does not come from the dataclasses of `COUNTERS`."""

COUNTERS: Mapping[str, str] = {
    "joiner": "stream.emission:JoinCounters",
    "trainer": "model.trainer_stats:TrainerStats",
    "ranker": "ranker.stats:RankerStats",
    "blender": "freshrank.blend_stats:BlendStats",
    "simulator": "sim.loop:SimCounters",
    "probe": "freshrank.live_probe:ProbeCounters",
    "agents": "stream.agents_config:AgentCounters",
}
"""Area and the dataclass whose integer fields become `freshrank_<area>_<field>_total`, documented by its strings."""


def counter_rows(area: str) -> list[MetricRow]:
    """Returns the counters of one area; counts by reason get the label `reason`. The monitor has none."""
    if area not in COUNTERS:
        return []
    owner = _owner(area)
    texts = field_texts(owner)
    return [
        MetricRow(f"freshrank_{area}_{name}_total", "counter", ("reason",) if by_reason else (), texts.get(name, ""))
        for name, by_reason in _countable(owner).items()
    ]


def metric_table() -> list[MetricRow]:
    """Returns every metric of every process, in the order of the loop. Imports all rooms."""
    return [
        row
        for area in COUNTERS
        for row in (*counter_rows(area), *(row for row in OTHERS if row.name.startswith(f"freshrank_{area}_")))
    ]


def read_counters(area: str, counters: object) -> Iterator[Reading]:
    """Yields the readings of one of the dataclasses named in `COUNTERS`."""
    for name in _countable(type(counters)):
        value = getattr(counters, name)
        if isinstance(value, Mapping):
            yield from (Reading(f"freshrank_{area}_{name}_total", count, (reason,)) for reason, count in value.items())
        else:
            yield Reading(f"freshrank_{area}_{name}_total", value)


def serve_metrics(
    area: str,
    address: str,
    read: Read,
    problem: Callable[[], str | None],
    around: Callable[[WSGIApplication], WSGIApplication] = lambda app: app,
) -> None:
    """Answers `/metrics` and `/healthz` at `host:port` from a thread of its own.

    Args:
        area: Whose metrics.
        address: Where it listens.
        read: Reads them.
        problem: Says in one line why the process is not well (HTTP 503); None while it is.
        around: Adds further doors.

    Raises:
        CommandError: the port is taken.
        ConfigError: an API token of the environment cannot be used.
    """
    host, _, port = address.rpartition(":")
    own, tokens = registry(area, read), api_tokens()
    try:
        server, _ = start_http_server(int(port), host, own)
    except OSError as error:
        sentence = f"Port {port} is taken or {host} is not this machine's; see monitor.{area}: {error.strerror}"
        raise CommandError(ExitCode.PORT_TAKEN, sentence) from error
    server.set_app(with_tokens(tokens, around(with_health(make_wsgi_app(own), problem))))


def registry(area: str, read: Read) -> CollectorRegistry:
    """Returns a registry with the metrics of one area and those of the process itself (memory, CPU)."""
    own = CollectorRegistry()
    ProcessCollector(registry=own)
    own.register(TableCollector(area, read))
    return own


def exposition(own: CollectorRegistry) -> tuple[bytes, str]:
    """Returns the body of an answer to `/metrics` and its content type."""
    return generate_latest(own), CONTENT_TYPE_LATEST


Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_FAMILIES: Mapping[MetricType, type[Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class TableCollector(Collector):
    """Turns readings into Prometheus families as the table declares them."""

    def __init__(self, area: str, read: Read) -> None:
        rows = [*counter_rows(area), *OTHERS]
        self._rows = {row.name: row for row in rows}
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yields one family per metric that has a reading."""
        families: dict[str, Family] = {}
        for reading in self._read():
            row = self._rows[reading.name]
            if row.name not in families:
                families[row.name] = _FAMILIES[row.type](row.name, row.help, labels=row.labels)
            family = families[row.name]
            if isinstance(family, HistogramMetricFamily):
                assert isinstance(reading, Buckets), f"{row.name} is a histogram"
                family.add_metric(reading.labels, _cumulative(reading), reading.total)
            else:
                assert isinstance(reading, Reading), f"{row.name} is no histogram"
                family.add_metric(reading.labels, reading.value)
        yield from families.values()

    def describe(self) -> Iterable[Metric]:
        """Returns nothing, so that registering does not read the counters."""
        return []


def _cumulative(read: Buckets) -> list[tuple[str, float]]:
    names = [*map(floatToGoString, read.bounds), "+Inf"]
    return list(zip(names, itertools.accumulate(map(float, read.counts)), strict=True))


def _owner(area: str) -> type:
    module, _, name = COUNTERS[area].partition(":")
    return cast(type, getattr(importlib.import_module(module), name))


def _countable(owner: type) -> dict[str, bool]:
    """Returns the fields that count, integers and counts by reason, and whether they are by reason; no durations."""
    return {
        name: hint is not int
        for name, hint in get_type_hints(owner).items()
        if hint in (int, Counter[str]) and not name.endswith("_ms")
    }
