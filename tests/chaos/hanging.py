"""Transactions that the broker has lost sight of: found, and ended as an operator would.

Apache Kafka 4.3.0 completes a transaction without its marker in partitions that have no leader at that moment
(KAFKA-20734). In `__consumer_offsets` that hides the group's offsets for ever, and nobody can take its partitions up;
in `examples` it hides all later labels from those who read what is committed. The abort lets things go on, no more: if
the transaction had been committed, it is now torn, and the verdict says so.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

OFFSETS_TOPIC = "__consumer_offsets"
_NUM_PARTITIONS = 4
"""Of the group's offsets, as `freshrank.embedded` sets it, and of the topics of a run."""
_HANGING_MS = 20_000
"""Twice the joiner's transaction timeout: to abort a transaction that is alive would tear it apart."""
_TOOL_TIMEOUT_S = 60.0


def abort_hanging(kafka_home: Path, endpoint: str, topics: Sequence[str]) -> int:
    """Aborts what is open in these topics for longer than any transaction may last; returns how many."""
    num_aborted = 0
    for place in ([topic, str(partition)] for topic in topics for partition in range(_NUM_PARTITIONS)):
        where = ["--topic", place[0], "--partition", place[1]]
        for start in _open_since(_ask(kafka_home, endpoint, "describe-producers", *where)):
            _ask(kafka_home, endpoint, "abort", *where, "--start-offset", str(start))
            num_aborted += 1
    return num_aborted


def _open_since(told: str) -> list[int]:
    """Returns the offsets at which transactions begin that the broker should have ended long ago."""
    rows = [line.split() for line in told.splitlines() if line.strip()]
    # Columns: producer id, epoch, coordinator epoch, last sequence, last timestamp, start of the open transaction.
    return [
        int(row[5])
        for row in rows
        if len(row) == 6 and row[5].isdigit() and int(row[4]) < time.time() * 1_000 - _HANGING_MS
    ]


def _ask(kafka_home: Path, endpoint: str, *arguments: str) -> str:
    argv = [str(kafka_home / "bin" / "kafka-transactions.sh"), "--bootstrap-server", endpoint, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_TOOL_TIMEOUT_S).stdout
