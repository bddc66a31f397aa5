"""`freshrank verify-join`: nothing to say about the joiner's own logs, and the right name for every planted fault."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from freshrank.cli import main
from freshrank.command import now_ms
from freshrank.config import load_config
from freshrank.log_source import RecordedSource, SavedSource, save_log
from freshrank.verify_join import verify_log
from sim.record import write_recorded_log
from stream.audit import FAULTS, AuditReport
from stream.audit_log import AuditRange
from stream.codec import encode
from stream.joiner import Joiner
from stream.kafka_log import KafkaGroupMember
from stream.kafka_producer import KafkaProducer, KafkaTransactionalProducer
from stream.log import DEAD_LETTER, EXAMPLES, FEEDBACK, IMPRESSIONS, KafkaConfig, topic_name
from stream.recorded import ReplayOrder
from stream.schema import KIND_CODE, OBSERVING_POLICIES, PolicyName, TaskConfig
from stream.topics import create_topics
from tests.freshrank.test_replay import SECTIONS, WORLD, Replayed
from tests.freshrank.verified_log import (
    BEAT_MS,
    CONFIG,
    END_MS,
    SCHEMA,
    START_MS,
    EditedLog,
    Row,
    cells,
    joined,
    source_of,
    traffic,
)
from tests.stream.build import did, schema, shown
from tests.stream.cluster import Cluster

POLICIES: tuple[PolicyName, ...] = (
    "wait", "eager", "vanilla", "vanilla_dup", "fnw", "fnc", "fnw_rn", "fsiw", "es_dfm", "defer", "defer_neg", "dfm",
    "defuse",
)  # fmt: skip


TRAFFIC = AuditRange(since_ms=START_MS)
NUM_BEATS = 2 * len(range(30_000, END_MS, BEAT_MS))


def verify(source: Any, within: AuditRange = AuditRange(), lag_ms: int = 0) -> AuditReport:
    return verify_log(source, SCHEMA, CONFIG, within, lag_ms=lag_ms)


def faults(report: AuditReport) -> dict[str, int]:
    return {name: getattr(report, name) for name in FAULTS if getattr(report, name)}


def policy_schema(policy: PolicyName) -> Any:
    return schema(
        click=TaskConfig(
            action="click", window_ms=10_000, policy=policy, observe_ms=3_000 if policy in OBSERVING_POLICIES else None
        )
    )


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return joined(traffic(1, SCHEMA, num_slates=25), SCHEMA)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_joiners_log_is_exact_under_every_policy(policy: PolicyName) -> None:
    tasks = policy_schema(policy)
    log = source_of(joined(traffic(3, tasks, num_slates=30), tasks))
    report = verify_log(log, tasks, CONFIG, TRAFFIC, lag_ms=0)
    assert (faults(report), report.findings) == ({}, [])
    assert report.slates == 30 + NUM_BEATS
    assert report.judged > 30
    assert (report.late, report.late_accepted, report.open, report.reused) == (0, 0, 0, 0)
    assert sum(report.positives["click"].values()) > 5


@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), tick_ms=st.sampled_from([100, 700, 1_900]), data=st.data())
def test_killed_and_started_again_it_stays_exact(seed: int, tick_ms: int, data: st.DataObject) -> None:
    arrivals = traffic(seed, SCHEMA)
    crash_at = data.draw(st.sets(st.integers(0, 150), max_size=6))
    report = verify(source_of(joined(arrivals, SCHEMA, tick_ms=tick_ms, crash_at=crash_at)), TRAFFIC)
    assert (faults(report), report.findings) == ({}, [])
    assert (report.slates, report.late, report.late_accepted, report.open) == (12 + NUM_BEATS, 0, 0, 0)


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    tick_ms=st.sampled_from([100, 700]),
    idle_ms=st.sampled_from([200, 1_000, 20_000]),
)
def test_events_far_too_late_or_dated_ahead_are_no_faults(
    seed: int, policy: PolicyName, tick_ms: int, idle_ms: int
) -> None:
    tasks = policy_schema(policy)
    config = replace(CONFIG, idle_ms=idle_ms)
    cluster = joined(traffic(seed, tasks, wild_share=0.3), tasks, config=config, tick_ms=tick_ms)
    report = verify_log(source_of(cluster), tasks, config, lag_ms=0)
    assert (faults(report), report.findings) == ({}, [])
    counters = cluster.counters()
    assert (report.late > 0) >= (counters.feedback_late > 0)


def test_late_events_are_counted() -> None:
    arrivals = [(1_000, shown("r", at=1_000)), (30_000, shown("s", at=30_000)), (30_000, did(at=30_000, on="s"))]
    arrivals += [(31_000, did(at=2_000)), (32_000, shown("late", at=1_500)), (40_000, did(at=40_000, on="s"))]
    report = verify(source_of(joined(arrivals, SCHEMA)))
    assert (faults(report), report.late, report.slates) == ({}, 2, 3)


Change = Callable[[list[Row]], None]


def once(change: Callable[[list[Row], int, int], None], task: str, kind: str, label: int | None = None) -> Change:
    """Returns a change of the first label of a kind in the whole log."""
    done: list[bool] = []

    def at_first(rows: list[Row]) -> None:
        for row, item in [] if done else list(cells(rows, task, kind)):
            if label is None or rows[row][f"label.{task}"][item] == label:
                change(rows, row, item)
                done.append(True)
                return

    return at_first


def put(column: str, task: str, value: Any) -> Callable[[list[Row], int, int], None]:
    def change(rows: list[Row], row: int, item: int) -> None:
        rows[row][f"{column}.{task}"][item] = value

    return change


def drop(task: str) -> Callable[[list[Row], int, int], None]:
    return put("kind", task, KIND_CODE["none"])


def double(rows: list[Row], row: int, item: int) -> None:
    alone = {name: [value[item]] if isinstance(value, list) and "sequence" not in name else value
             for name, value in rows[row].items()}  # fmt: skip
    for name, value in alone.items():
        if name.startswith("kind.") and value != [KIND_CODE["final"]]:
            alone[name] = [KIND_CODE["none"]]
    rows.append(alone)


def early(rows: list[Row], row: int, item: int) -> None:
    rows[row]["emitted_watermark_ms"] = rows[row]["ts"] + 10_500


def future(rows: list[Row], row: int, item: int) -> None:
    rows[row]["logged"] = rows[row]["emitted_watermark_ms"] - 1


def other_item(rows: list[Row], row: int, item: int) -> None:
    rows[row]["item_id"][item] = "never shown"


def lies_about_the_window(rows: list[Row], row: int, item: int) -> None:
    rows[row]["emitted_watermark_ms"] = rows[row]["ts"] + 10_501


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (once(drop("click"), "click", "final"), {"lost": 1}),
        (once(drop("long_view"), "long_view", "matured"), {"lost": 1}),
        (once(double, "click", "final", 0), {"double": 1}),
        (once(put("label", "hide", 1), "hide", "final", 0), {"wrong": 1}),
        (once(put("label", "click", 0), "click", "final", 1), {"wrong": 2}),  # and too early for a negative
        (once(put("delay_ms", "click", 77), "click", "final", 1), {"wrong": 1}),
        (once(put("kind", "hide", KIND_CODE["matured"]), "hide", "final"), {"wrong": 1}),
        (once(put("label", "order", 0), "order", "matured", 1), {"wrong": 1}),
        (once(drop("order"), "order", "late_positive"), {"lost": 1}),
        (once(future, "hide", "final", 0), {"wrong": None}),
        (once(early, "click", "final", 0), {"wrong": None}),
        (once(lies_about_the_window, "click", "final", 1), {"wrong": 1}),
    ],
)
def test_planted_faults_are_reported_under_their_names(
    cluster: Cluster, change: Change, expected: dict[str, int | None]
) -> None:
    report = verify(EditedLog(cluster).edit(change))
    found = faults(report)
    assert found.keys() == expected.keys()
    assert all(number in (None, found[name]) for name, number in expected.items())
    assert len(report.findings) == sum(found.values())
    assert all(finding.request_id and finding.task and finding.text for finding in report.findings)


def test_a_late_positive_without_its_negative_is_contradictory(cluster: Cluster) -> None:
    def without_negative(rows: list[Row]) -> None:
        for row, item in list(cells(rows, "order", "late_positive"))[:1]:
            place = (rows[row]["request_id"], rows[row]["item_id"][item])
            for first, other in cells(rows, "order", "fake_negative"):
                if (rows[first]["request_id"], rows[first]["item_id"][other]) == place:
                    rows[first]["kind.order"][other] = KIND_CODE["none"]

    report = verify(EditedLog(cluster).edit(without_negative))
    assert report.contradictory >= 1
    assert faults(report) == {"lost": report.contradictory, "contradictory": report.contradictory}


def test_two_final_labels_that_disagree_are_double_and_contradictory(cluster: Cluster) -> None:
    def disagree(rows: list[Row], row: int, item: int) -> None:
        double(rows, row, item)
        rows[-1]["label.hide"], rows[-1]["delay_ms.hide"] = [1], [5]

    report = verify(EditedLog(cluster).edit(once(disagree, "hide", "final", 0)))
    assert faults(report) == {"double": 1, "contradictory": 1}


def test_a_whole_slate_that_is_missing_is_lost_and_one_never_shown_is_wrong(cluster: Cluster) -> None:
    def without_a_slate(rows: list[Row]) -> None:
        rows[:] = [row for row in rows if row["request_id"] != "r3"]

    items = sum(len(slate.items.id) for _, slate in traffic(1, SCHEMA, 25) if getattr(slate, "items", None)
                and slate.request_id == "r3") // 1  # fmt: skip
    report = verify(EditedLog(cluster).edit(without_a_slate))
    assert faults(report).keys() == {"lost"}
    assert report.lost >= items * len(SCHEMA.tasks) // 2
    assert {finding.request_id for finding in report.findings} == {"r3"}

    log = EditedLog(cluster)
    for number in range(log.num_partitions):
        kept = [message for message in log.log[IMPRESSIONS, number] if b'"r3"' not in message.value]
        log.log[IMPRESSIONS, number] = kept
    report = verify(log)
    assert faults(report).keys() == {"wrong"}
    assert {finding.request_id for finding in report.findings} == {"r3"}


def test_an_item_that_was_never_shown_is_wrong_and_the_shown_one_lost(cluster: Cluster) -> None:
    report = verify(EditedLog(cluster).edit(once(other_item, "hide", "final", 0)))
    assert report.wrong >= 1
    assert report.lost >= 1


def test_feedback_without_effect_is_told_by_name() -> None:
    arrivals = [(1_000, shown("r", at=1_000)), (1_100, did(at=1_050, item="b")), (1_200, did(at=1_060, on="none"))]
    cluster = joined(arrivals, SCHEMA)
    report = verify(source_of(cluster))
    assert (faults(report), report.unmatched, report.pending, report.feedback) == ({}, 2, 0, 2)
    counters = cluster.counters()
    assert counters.feedback_unknown_item + counters.feedback_unmatched == report.unmatched


def test_windows_that_are_open_at_the_end_are_not_judged() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.start()
    cluster.now_ms = 20_000
    for _ in range(3):
        cluster.turn()
    cluster.send(shown("r", "a", "b", at=20_000), did(at=20_100), did(at=20_100, on="nobody's"))
    for _ in range(3):
        cluster.now_ms += 200
        cluster.turn()
    report = verify(source_of(cluster))
    assert (faults(report), report.judged, report.open, report.pending, report.unmatched) == ({}, 0, 8, 1, 0)
    assert report.labels["click"] == {"final": 1}
    spoilt = EditedLog(cluster).edit(once(double, "click", "final", 1))
    assert faults(verify(spoilt)) == {"double": 1}


def test_a_joiner_that_stands_still_loses_labels_after_the_lag() -> None:
    config = replace(CONFIG, idle_ms=1_000)
    cluster = Cluster(SCHEMA, config, now_ms=20_000)
    cluster.send(shown("r", at=20_000))
    cluster.now_ms = 60_000
    assert faults(verify_log(source_of(cluster), SCHEMA, config, lag_ms=45_000)) == {}
    report = verify_log(source_of(cluster), SCHEMA, config, lag_ms=5_000)
    assert (faults(report), report.open) == ({"lost": 1 + 1 + 2 + 2}, 0)


def test_malformed_messages_need_one_dead_letter_each() -> None:
    cluster = Cluster(SCHEMA, CONFIG)
    cluster.start()
    cluster.send(shown("r", at=0))
    cluster.send_bytes(IMPRESSIONS, b"{")
    cluster.send_bytes(FEEDBACK, b"\xff\n")
    cluster.settle()
    log = EditedLog(cluster)
    report = verify(log)
    assert (faults(report), report.malformed) == ({}, 2)
    letters = [place for place in log.log if place[0] == DEAD_LETTER and log.log[place]]
    first = log.log[letters[0]].pop()
    report = verify(log)
    assert faults(report) == {"lost": 1}
    assert "has no dead letter" in report.findings[0].text
    log.log[letters[0]] += [first, first]
    assert faults(verify(log)) == {"double": 1}
    log.log[letters[0]].pop()
    stray = dict(first.headers) | {"source_topic": b"impressions", "source_offset": b"0"}
    log.log[letters[0]].append(first._replace(headers=tuple(stray.items())))
    assert faults(verify(log)).get("wrong") == 1


def test_a_request_id_used_again_is_not_judged() -> None:
    arrivals = [(1_000, shown("r", at=1_000)), (1_500, shown("r", at=1_400)), (60_000, shown("r", at=60_000))]
    report = verify(source_of(joined(arrivals, SCHEMA)))
    assert (faults(report), report.duplicates, report.reused, report.slates) == ({}, 2, 1, 0)


def test_only_what_is_in_range_is_judged(cluster: Cluster) -> None:
    whole = verify(source_of(cluster))
    part = verify(source_of(cluster), AuditRange(since_ms=35_000, until_ms=45_000))
    assert faults(part) == {}
    assert 0 < part.slates < whole.slates
    assert part.slates + part.skipped + part.duplicates >= whole.slates
    halves = [verify(source_of(cluster), AuditRange(sample=0.5)) for _ in range(2)]
    assert halves[0].as_dict() == halves[1].as_dict()
    assert 0 < halves[0].slates < whole.slates
    assert faults(halves[0]) == {}


def test_what_retention_has_deleted_is_not_missed(cluster: Cluster) -> None:
    for topic in (IMPRESSIONS, FEEDBACK, EXAMPLES):
        log = EditedLog(cluster)
        place = (topic, 1)
        assert len(log.log[place]) > 6
        del log.log[place][: len(log.log[place]) // 3]
        assert not verify(log).is_exact, topic
        log.cut.add(place)
        report = verify(log)
        assert faults(report) == {}, topic
        assert report.slates > 0
        assert report.skipped > 0 or topic == IMPRESSIONS


def test_a_saved_log_is_the_log(cluster: Cluster, tmp_path: Path) -> None:
    source = source_of(cluster)
    save_log(source, tmp_path / "saved")
    assert verify(SavedSource(tmp_path / "saved")).as_dict() == verify(source).as_dict()
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "examples.arrow", "outcomes.arrow", "dead-letter.arrow", "impressions.arrow", "feedback.arrow", "log.json",
    }  # fmt: skip


def test_examples_made_under_other_settings_are_refused(cluster: Cluster) -> None:
    tasks = replace(SCHEMA, tasks=SCHEMA.tasks | {"hide": TaskConfig(action="hide", window_ms=6_000, policy="wait")})
    with pytest.raises(ValueError, match=r"examples\[0\] at offset 0: tasks.hide was .*6000"):
        verify_log(source_of(cluster), tasks, CONFIG)
    assert verify_log(source_of(cluster), tasks, CONFIG, AuditRange(since_ms=10**9)).rows > 0


RUN = """
scenarios: [home, search]
tasks:
  click: {action: click, window_ms: 10000, policy: eager}
  hide: {action: hide, window_ms: 5000, policy: wait}
  long_view: {action: view, window_ms: 10000, at_least: 3.0, policy: es_dfm, observe_ms: 3000}
  order: {action: order, window_ms: 12000, policy: fnw}
join: {grace_ms: 500, out_of_orderness_ms: 2000, max_ahead_ms: 0, idle_ms: 1000, duplicate_ms: 1000}
"""


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["verify-join", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_the_command_tells_the_faults_and_exits_with_1(
    cluster: Cluster, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_log(EditedLog(cluster), tmp_path / "good")
    save_log(EditedLog(cluster).edit(once(drop("click"), "click", "final")), tmp_path / "bad")
    assert run(tmp_path / "good", "--config", config, "--lag-ms", 0) == 0
    out = capsys.readouterr().out
    assert "lost 0, double 0, contradictory 0, wrong 0" in out
    assert "fake_negative" in out
    assert run(tmp_path / "bad", "--config", config, "--lag-ms", 0) == 1
    out = capsys.readouterr().out
    assert "lost 1, double 0, contradictory 0, wrong 0" in out
    assert "expected, not found" in out
    assert run(tmp_path / "bad", "--config", config, "--lag-ms", 0, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in (*FAULTS, "late", "unmatched", "open")} == {
        "lost": 1, "double": 0, "contradictory": 0, "wrong": 0, "late": 0, "unmatched": report["unmatched"], "open": 0,
    }  # fmt: skip
    assert report["findings"][0]["fault"] == "lost"
    assert run(tmp_path / "bad", "--config", config, "--save", tmp_path / "again", "--lag-ms", 0) == 1


def test_a_replayed_log_is_verified_as_it_was_replayed(tmp_path: Path) -> None:
    write_recorded_log(tmp_path, 60, 3, replace(WORLD, duplicate_share=0.05, disorder_share=0.1))
    for order in get_args(ReplayOrder):
        Replayed(tmp_path, tmp_path, order=order)
        source = RecordedSource(tmp_path, order)
        report = verify_log(source, SECTIONS["schema"], SECTIONS["join"])
        assert (faults(report), report.findings, report.slates, report.open) == ({}, [], 60, 0)
        assert report.judged == 60 * 10 * len(SECTIONS["schema"].tasks)
        assert (report.late, report.late_accepted) == (0, 0)
    wrong = replace(SECTIONS["join"], grace_ms=2_501)
    with pytest.raises(ValueError, match="grace_ms"):
        verify_log(source, SECTIONS["schema"], wrong)


SHORT = """
scenarios: [home, search]
tasks:
  click: {action: click, window_ms: 300, policy: eager}
  order: {action: order, window_ms: 400, policy: fnw}
join: {grace_ms: 200, out_of_orderness_ms: 200, max_ahead_ms: 0, idle_ms: 20000, commit_interval_ms: 50}
"""


@pytest.mark.integration
def test_the_command_reads_a_broker_to_its_end(
    apache_broker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = KafkaConfig(bootstrap_servers=apache_broker, topic_prefix=f"v{uuid.uuid4().hex[:8]}-")
    config = tmp_path / "run.yaml"
    config.write_text(f"{SHORT}kafka: {{bootstrap_servers: '{apache_broker}', topic_prefix: {kafka.topic_prefix}}}\n")
    settings = load_config(config)
    create_topics(kafka)
    producer = KafkaProducer(kafka)
    topics = [topic_name(kafka, topic) for topic in (IMPRESSIONS, FEEDBACK)]
    for number in range(80):
        user, at_ms = f"u{number % 20}", now_ms()
        events = (shown(f"r{number}", "a", "b", at=at_ms, user=user), did(at=at_ms + 20, on=f"r{number}", user=user))
        for topic, event in zip(topics, events, strict=True):
            assert producer.produce(topic, user.encode(), encode(event))
        time.sleep(0.03)
    assert producer.flush(10_000) == 0
    member = KafkaGroupMember(kafka, f"{kafka.topic_prefix}group", topics)
    committer = KafkaTransactionalProducer(kafka, f"{kafka.topic_prefix}joiner")
    joiner = Joiner(settings.schema, settings.join, member, committer, kafka, now_ms)
    until_ms = now_ms() + 30_000
    # It stops when it has read everything: the windows of the last slates are still open then.
    joiner.run(lambda: now_ms() > until_ms or joiner.counters.impressions + joiner.counters.feedback == 160)
    committer.close()
    member.close()
    assert run("--config", config, "--json", "--save", tmp_path / "saved") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["impressions"], report["feedback"], report["slates"]) == (80, 80, 80)
    assert report["judged"] > 100
    assert report["open"] > 0
    assert report["labels"]["click"]["final"] > 80
    assert run(tmp_path / "saved", "--config", config, "--json") == 0
    assert json.loads(capsys.readouterr().out) == report
    assert run("--config", config, "--set", "kafka.adapter=kafka-python", "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == report["labels"]
    # A minute later the joiner has no excuse any more.
    manifest = json.loads((tmp_path / "saved/log.json").read_text())
    (tmp_path / "saved/log.json").write_text(json.dumps(manifest | {"as_of_ms": manifest["as_of_ms"] + 100_000}))
    assert run(tmp_path / "saved", "--config", config, "--json") == 1
    later = json.loads(capsys.readouterr().out)
    assert (later["open"], later["double"], later["wrong"]) == (0, 0, 0)
    assert later["lost"] > 0


def test_the_command_refuses_what_it_cannot_read_in_one_line(
    cluster: Cluster, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    assert run(folder, "--config", config) == 2
    assert "impressions.jsonl or impressions.jsonl.gz is needed" in capsys.readouterr().err
    save_log(EditedLog(cluster), folder)
    (folder / "examples.arrow").write_bytes(b"no Arrow")
    assert run(folder, "--config", config) == 2
    assert "examples.arrow: cannot be read" in capsys.readouterr().err
    (folder / "log.json").write_text("{")
    assert run(folder, "--config", config) == 2
    assert "log.json: cannot be read" in capsys.readouterr().err
    assert run(folder, "--config", config, "--since", "yesterday") == 2
    assert "'yesterday' is not a time" in capsys.readouterr().err
