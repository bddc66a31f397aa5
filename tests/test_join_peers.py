"""The benchmark of join peers: its oracle, what counts as wrong, and a peer that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import join_peers
from benchmarks.peers import child, dict_loop, environment, join_core
from benchmarks.peers.environment import NotRunError
from benchmarks.peers.events import ITEMS_PER_SLATE, OUT_OF_ORDERNESS_MS, WINDOW_MS, Event, arrivals, read, write
from benchmarks.peers.kafka_side import labels_of_examples
from benchmarks.peers.meter import tree_cpu_s, tree_peak_mib
from benchmarks.peers.oracle import Score, score, truth
from freshrank import reference
from stream.examples import ExampleEncoder
from stream.join import JoinCore
from stream.schema import Impression


def shown(key: str, ts: int) -> Event:
    return Event("impression", key, "r", "u", "i", ts, f"{key}/shown")


def clicked(key: str, ts: int) -> Event:
    return Event("feedback", key, "r", "u", "i", ts, f"{key}/{ts}")


@pytest.mark.parametrize(
    ("delay_ms", "label"), [(-1, 0), (0, 1), (1, 1), (WINDOW_MS - 1, 1), (WINDOW_MS, 1), (WINDOW_MS + 1, 0)]
)
def test_a_click_counts_from_the_slate_to_the_end_of_its_window(delay_ms: int, label: int) -> None:
    assert truth([shown("a", 10_000), clicked("a", 10_000 + delay_ms)]) == {"a": label}


def test_truth_does_not_depend_on_the_order_of_arrival_or_on_copies() -> None:
    log = [shown("a", 0), clicked("a", WINDOW_MS + 1), clicked("a", 5), shown("b", 7), clicked("nothing", 8)]
    assert truth(log) == truth(log[::-1] * 2) == {"a": 1, "b": 0}


def test_rows_are_counted_in_the_class_of_what_is_wrong_with_them() -> None:
    expected = {"right": 1, "lost": 0, "double": 1, "contradictory": 1, "wrong": 0, "wrong twice": 1}
    rows = [
        ("right", 1),
        *[("double", 1)] * 3,
        ("contradictory", 0), ("contradictory", 1),
        ("wrong", 1),
        ("wrong twice", 0), ("wrong twice", 0),
        ("never shown", 0),
        ("end", 0),
    ]  # fmt: skip
    found = score(rows, expected)
    assert found == Score(expected=6, lost=1, double=1, contradictory=1, wrong=3)
    assert found.rows_wrong == 6


def test_right_rows_are_not_wrong() -> None:
    expected = {"a": 1, "b": 0}
    assert score(expected.items(), expected) == Score(expected=2, lost=0, double=0, contradictory=0, wrong=0)


def test_the_log_has_what_production_has_and_no_more_disorder_than_it_says() -> None:
    events = arrivals(400)
    assert events == arrivals(400)
    assert events != arrivals(400, seed=2)
    assert 1.02 < len(events) / len({event.event_id for event in events}) < 1.08
    newest_ms, was_shown, num_early = 0, set(), 0
    for event in events:
        newest_ms = max(newest_ms, event.ts)
        assert event.ts >= newest_ms - OUT_OF_ORDERNESS_MS
        if event.kind == "impression":
            was_shown.add(event.key)
        num_early += event.kind == "feedback" and event.key not in was_shown
    assert len(was_shown) == 400 * ITEMS_PER_SLATE
    assert num_early > 5
    assert 0.05 < sum(truth(events).values()) / len(was_shown) < 0.15


def test_a_log_comes_back_from_its_file(tmp_path: Path) -> None:
    events = arrivals(3)
    write(tmp_path / "log", events)
    assert read(tmp_path / "log") == events


@pytest.mark.parametrize("single", [False, True])
def test_our_core_gives_each_label_once_and_right(single: bool) -> None:
    events = arrivals(2_000)
    found = join_core.join(join_core.decoded(events, single=single))
    assert score(join_core.rows_of(found, single=single), truth(events)).rows_wrong == 0


def test_the_dict_loop_loses_exactly_the_clicks_that_come_before_their_item() -> None:
    in_order = sorted(arrivals(500), key=lambda event: (event.ts, event.kind == "feedback"))
    assert score(dict_loop.join(in_order), truth(in_order)).rows_wrong == 0
    log = [clicked("a", 5), shown("a", 0), shown("b", 0), clicked("b", 5)]
    assert score(dict_loop.join(log), truth(log)) == Score(expected=2, lost=0, double=0, contradictory=0, wrong=1)


def test_a_peer_that_is_not_installed_says_so_and_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "interpreter", lambda name: environment.python_of(name, tmp_path))
    flink = next(peer for peer in join_peers.PEERS if peer.name == "Flink")
    assert join_peers.row(flink, child.Log(events=[], expected={}), "") == {
        "peer": "Flink",
        "version": "2.3.0",
        "exactly_once": "yes",
        "note": "not run: not installed; `python -m benchmarks.join_peers --install` does it",
    }


def test_a_peer_installed_in_other_versions_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "quix/bin").mkdir(parents=True)
    (tmp_path / "quix/bin/python").touch()
    (tmp_path / "quix/installed.txt").write_text("quixstreams==0.0.1\n")
    with pytest.raises(NotRunError, match="other versions"):
        environment.python_of("quix", tmp_path)


def test_a_peer_that_fails_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = join_peers.PEERS[0]
    monkeypatch.setattr(child, "interpreter", lambda name: Path("/bin/false"))
    row = join_peers.row(failing, child.Log(events=[], expected={}), "")
    assert row["note"] == "not run: exit code 1: no message"


def test_a_peer_that_takes_too_long_is_stopped_with_all_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntail -f /dev/null &\necho $! > {tmp_path}/started\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setattr(child, "interpreter", lambda name: slow)
    with pytest.raises(NotRunError, match="stopped after 2 s"):
        child.run(join_peers.PEERS[0], child.Log(events=[], expected={}), "", limit_s=2)
    stat = Path(f"/proc/{(tmp_path / 'started').read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_peer_runs_as_a_child_and_is_scored() -> None:
    events = arrivals(50)
    row = join_peers.row(join_peers.PEERS[1], child.Log(events=events, expected=truth(events)), "")
    assert (row["expected"], row["rows_wrong"]) == (500, 0)
    assert row["events_per_cpu_s"] > 0
    assert row["peak_rss_mib"] > 5


def test_every_peer_has_a_file_and_those_of_others_their_pins() -> None:
    for peer in join_peers.PEERS:
        assert (environment.PINS / f"{peer.module}.py").exists()
        if peer.package is not None:
            assert environment.version(peer.module, peer.package)


def test_labels_are_read_from_one_file_or_from_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("r-1/a,1\nr-1/b,0\n")
    assert child.file_rows(tmp_path / "rows") == child.file_rows(tmp_path) == [("r-1/a", 1), ("r-1/b", 0)]


def test_labels_of_ours_are_read_from_arrow() -> None:
    events = arrivals(20)
    core = JoinCore(join_core.SCHEMA, join_core.CONFIG)
    for offset, event in enumerate(join_core.decoded(events)):
        if isinstance(event, Impression):
            core.observe_impression(event, offset)
        else:
            core.observe_feedback(event, offset)
    messages = ExampleEncoder(join_core.SCHEMA, join_core.CONFIG).encode(core.advance(2**42))
    rows = [row for message in messages for row in labels_of_examples(message)]
    assert score(rows, truth(events)).rows_wrong == 0


def test_the_meter_counts_what_children_use() -> None:
    before_s, code = tree_cpu_s(), "sum(range(30_000_000)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        alive_s, peak_mib = tree_cpu_s() - before_s, tree_peak_mib()
        busy.communicate(b"\n")
    own_kib = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    assert alive_s > 0.1
    assert tree_cpu_s() - before_s >= alive_s - 2 / os.sysconf("SC_CLK_TCK")
    assert peak_mib > int(own_kib) / 1024


def test_rows_of_the_table_survive_json() -> None:
    events = arrivals(5)
    row = join_peers.row(join_peers.PEERS[0], child.Log(events=events, expected=truth(events)), "")
    assert json.loads(json.dumps(row)) == row


def test_the_table_of_the_readme_has_a_peer_without_figures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = arrivals(5)
    ours = join_peers.row(join_peers.PEERS[1], child.Log(events=events, expected=truth(events)), "")
    absent = {"peer": "Flink", "version": "2.3.0", "exactly_once": "yes", "note": "not run: no Java"}
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    latest = {"P2 peers": {"table": [ours, absent]}}
    (tmp_path / "benchmarks/results/latest.json").write_text(json.dumps(latest))
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    lines = reference.join_peers().splitlines()
    assert "| 50 | 0 (0, 0, 0, 0) | no |" in lines[2]
    assert lines[3] == "| Flink | 2.3.0 |  |  |  |  |  | yes | not run: no Java |"
