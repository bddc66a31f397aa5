"""P2, P3: how do other stream processors join the same dirty log, how fast, and how many labels do they get wrong?

One left join: each shown item gets the label 1 if it is clicked within its window, else 0 when the window closes. The
log is that of `peers/events.py`, with duplicates, disorder and clicks before their slate; what the labels must be says
`peers/oracle.py`, which never sees the order of arrival. Each peer is one file of `peers/` and runs alone, in a process
and a virtual environment of its own, made by `--install` from its pins. CPU-seconds are user + system of its whole
process tree, the JVM included and the broker not, from the first event read to the last label written; start-up,
imports and, for the JVM, a run over another log are not counted.

    python -m benchmarks.join_peers --install        # once: the peers' environments, 1.1 GB in benchmarks/.peers
    python -m benchmarks.join_peers --slates 60000   # a longer log; --only flink quix: some of them
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.harness import Figure
from benchmarks.joiner_process import broker
from benchmarks.peers.child import Log, Peer, run
from benchmarks.peers.environment import NotRunError, install, version
from benchmarks.peers.events import arrivals
from benchmarks.peers.oracle import score, truth

COMMAND = "python -m benchmarks.join_peers"
SHORT_SLATES = 2_000
LIMIT_S = 90.0
"""A peer that takes longer over the short form's log is stopped; over a longer log it has as much more."""


PEERS = (
    Peer(name="plain dict loop", module="dict_loop", exactly_once="no",
         note="decoded events in memory; clicks before their slate are lost"),
    Peer(name="freshrank join core", module="join_core", exactly_once="no",
         note="decoded events in memory, slates of 10; exactly once is the joiner's part"),
    Peer(name="freshrank join core, single items", module="join_core", arguments=("--single",), exactly_once="no",
         note="the same, each item a slate of its own"),
    Peer(name="freshrank joiner", module="joiner", form="ours", exactly_once="yes",
         note="Kafka JSON in, Arrow out, a transaction every 100 ms; slates of 10"),
    Peer(name="Flink", module="flink", package="apache-flink", exactly_once="yes",
         note="SQL interval left join in the JVM, files in and out, checkpoint every second"),
    Peer(name="Quix Streams", module="quix", package="quixstreams", form="two topics", exactly_once="yes",
         note="join_interval left: a row at once, another at the click; Kafka, transactions"),
    Peer(name="Bytewax", module="bytewax", package="bytewax", exactly_once="no",
         note="join_window on sessions, files in and out, recovery on; closes at the end of the log"),
    Peer(name="Faust", module="faust", package="faust-streaming", form="one topic", exactly_once="no",
         note="agent and table with changelog; Kafka"),
)  # fmt: skip


def row(peer: Peer, log: Log, address: str) -> dict[str, Any]:
    """Returns a peer's row of the table; if it cannot be run, one that says why and has no figures."""
    heading = {
        "peer": peer.name,
        "version": "" if peer.package is None else version(peer.module, peer.package),
        "exactly_once": peer.exactly_once,
    }
    try:
        report, rows = run(peer, log, address, limit_s=LIMIT_S * max(1.0, len(log.events) / 25_000))
    except NotRunError as error:
        return heading | {"note": f"not run: {error}"}
    rates = [len(log.events) / seconds for seconds in report.cpu_s]
    found = score(rows, log.expected)
    return heading | {
        "events_per_cpu_s": statistics.median(rates),
        "events_per_cpu_s_range": [min(rates), max(rates)],
        "events_per_s": len(log.events) / statistics.median(report.wall_s),
        "peak_rss_mib": report.rss_mib,
        **asdict(found),
        "rows_wrong": found.rows_wrong,
        "note": peer.note,
    }


def table(num_slates: int, peers: Sequence[Peer] = PEERS) -> list[dict[str, Any]]:
    """Returns the rows of the peers, one after the other over the same events."""
    events = arrivals(num_slates)
    log, rows = Log(events=events, expected=truth(events)), []
    with ExitStack() as stack:
        address = stack.enter_context(broker())[1] if any(peer.form for peer in peers) else ""
        for peer in peers:
            rows.append(row(peer, log, address))
            print(_line(rows[-1]), flush=True)
    return rows


def measure(num_slates: int = SHORT_SLATES) -> dict[str, Figure]:
    """Returns the join core's rate with the peers' beside it, and the whole table."""
    rows = table(num_slates)
    rates = {row["peer"]: row["events_per_cpu_s"] for row in rows if "events_per_cpu_s" in row}
    ours = next(row for row in rows if row["peer"] == PEERS[1].name)
    if ours.get("rows_wrong") != 0:
        raise RuntimeError(f"the join core disagrees with the oracle: {ours}")
    low, high = ours["events_per_cpu_s_range"]
    return {
        "P2 peers": Figure(
            value=rates.pop(PEERS[1].name),
            unit="events/CPU-s",
            ci=(low, high),
            command=COMMAND,
            peers=rates,
            note=f"{num_slates} slates of 10, 5 % duplicates, 10 % disorder; all columns in benchmarks/README.md",
            table=rows,
        )
    }


def _line(row: Mapping[str, Any]) -> str:
    if "events_per_cpu_s" not in row:
        return f"{row['peer']:36} {row['note']}"
    return (
        f"{row['peer']:36} {row['events_per_cpu_s']:>11,.0f} events/CPU-s {row['events_per_s']:>11,.0f} events/s "
        f"{row['peak_rss_mib']:>7,.0f} MiB  wrong {row['rows_wrong']} of {row['expected']}: "
        f"{row['lost']} lost, {row['double']} double, {row['contradictory']} contradictory, {row['wrong']} wrong"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or installs the peers. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="make the peers' virtual environments")
    parser.add_argument("--slates", type=int, default=SHORT_SLATES, help="length of the log, slates of 10 items")
    parser.add_argument("--only", nargs="+", metavar="FILE", choices=sorted({peer.module for peer in PEERS}))
    options = parser.parse_args(arguments)
    peers = [peer for peer in PEERS if options.only is None or peer.module in options.only]
    if not options.install:
        table(options.slates, peers)
        return 0
    failed = 0
    for name in dict.fromkeys(peer.module for peer in peers if peer.package is not None):
        try:
            install(name)
            print(f"{name}: installed", flush=True)
        except NotRunError as error:
            failed = 1
            print(f"{name}: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
