"""L5 over real processes: what share of the oracle's lift do learned weights reach, and in how many rounds?

Runs `freshrank up --config configs/blender.yaml` and reads the topic `outcomes` beside it. Every explored request logs
all candidates with their scores, and the world knows what each of them would have brought: so each request is ranked
again, by the production weights, by the weights in service then, and by the oracle's (`reward * mood`, on the same
scores), and the three slates are worth what the truth says. Takes about a quarter of an hour; not part of `make bench`.

    python -m benchmarks.blender_loop --versions 3 --json benchmarks/results/blender_loop.json
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.demo import PORTS, ROOT, free_ports
from freshrank.config import RunConfig, load_config
from sim.behaviour import Truth, truth
from sim.catalogue import NUM_LATENT
from sim.world import World
from stream import kafka_adapter
from stream.exceptions import LogUnavailableError
from stream.log import OUTCOMES, TopicPartition, topic_name

ACTIONS = ("click", "order", "hide")


@dataclass(slots=True)
class Values:
    """Sums of the true expected reward per request over the requests explored around one version."""

    requests: int = 0
    static: float = 0.0
    served: float = 0.0
    """Of the weights in service, without the draw."""
    drawn: float = 0.0
    oracle: float = 0.0
    best: float = 0.0
    """Of the best slate there is, whatever the scores."""
    differences: list[tuple[float, float]] = field(default_factory=list)
    """(served - static, oracle - static) per request."""

    def report(self) -> dict[str, Any]:
        """Returns means, and the share of the oracle's lift with its 95 % interval (bootstrap over requests)."""
        pairs_N2 = np.array(self.differences)
        rng = np.random.default_rng(0)
        drawn = [pairs_N2[rng.integers(len(pairs_N2), size=len(pairs_N2))].sum(axis=0) for _ in range(400)]
        shares = [served / oracle for served, oracle in drawn]
        mean = {name: getattr(self, name) / self.requests for name in ("static", "served", "drawn", "oracle", "best")}
        return {
            "requests": self.requests,
            **{name: round(value, 4) for name, value in mean.items()},
            "oracle_lift": round(mean["oracle"] / mean["static"] - 1, 4),
            "exploration_cost": round(1 - mean["drawn"] / mean["served"], 4),
            "oracle_share": {
                "mean": round(float(pairs_N2[:, 0].sum() / pairs_N2[:, 1].sum()), 4),
                "ci": [round(float(np.quantile(shares, edge)), 4) for edge in (0.025, 0.975)],
            },
        }


class Judge:
    """Values logged requests by the truth of the simulated world."""

    def __init__(self, run: RunConfig) -> None:
        self._world = World(run.sim)
        self._reward = np.array([run.blender.reward.values[action] for action in ACTIONS])
        weights, scale = run.blender.weights["default"], run.blender.scale
        self._static = np.array([weights[action] / scale.get(action, 1.0) for action in ACTIONS])
        self.by_version: dict[int, Values] = {}
        self.skipped = 0
        """Requests of which an item was gone when they were judged."""

    def take(self, row: dict[str, Any]) -> None:
        """Values one row of the topic."""
        try:
            known = self._truth(row)
        except ValueError:
            self.skipped += 1
            return
        order = np.argsort(row["item_id"], kind="stable")  # ties by item id, as in serving
        scores_NT = np.array([row[f"score.{action}"] for action in ACTIONS], np.float64).T[order]
        num_shown = sum(position >= 0 for position in row["position"])
        mood = self._world.config.moods[row["context.mood"]]
        factor = np.array([mood.click, mood.order, mood.hide])

        def value(factor_T: Any) -> float:
            best = np.argsort(-(scores_NT @ factor_T), kind="stable")[:num_shown]
            return known.expected_utility(order[best])

        values = self.by_version.setdefault(row["blender"], Values())
        static, oracle = value(self._static), value(self._reward * factor)
        served, drawn = (value(self._per_score(row, name)) for name in ("center", "weight"))
        values.requests += 1
        values.static, values.served = values.static + static, values.served + served
        values.drawn, values.oracle = values.drawn + drawn, values.oracle + oracle
        values.best += known.bounds(num_shown)[1]
        values.differences.append((served - static, oracle - static))

    def _per_score(self, row: dict[str, Any], name: str) -> Any:
        return np.array([row[f"{name}.{action}"] / row[f"scale.{action}"] for action in ACTIONS])

    def _truth(self, row: dict[str, Any]) -> Truth:
        return truth(
            self._world,
            user_id=row["user_id"],
            scenario=row["scenario"],
            now_ms=row["ts"],
            candidates=self._world.known_items(row["item_id"], row["ts"]),
            interest_D=np.zeros(NUM_LATENT),  # the configuration gives it no effect
            mood=row["context.mood"],
        )


def rows(run: RunConfig) -> Iterator[list[dict[str, Any]]]:
    """Yields the explored requests of the topic as they come; an empty list when there are none for a second."""
    reader, num_partitions, topic = None, 0, topic_name(run.kafka, OUTCOMES)
    while reader is None or not num_partitions:  # the broker is only coming up
        yield []
        time.sleep(1.0)
        try:
            reader = reader or kafka_adapter.reader(run.kafka)
            num_partitions = reader.num_partitions(topic)
        except LogUnavailableError:
            continue
    partitions = [TopicPartition(topic, number) for number in range(num_partitions)]
    reader.assign(reader.begin_offsets(partitions))
    while True:
        found = [
            row
            for message in reader.poll(100, 1_000)
            for row in pa.ipc.open_stream(message.value).read_all().to_pylist()
        ]
        yield [row for row in found if row["law"]]


def main() -> int:
    """Runs the loop until enough versions have served, or the time is over. Exit code 1: not enough."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=3, help="learned versions to wait for (3)")
    parser.add_argument("--minutes", type=float, default=25.0, help="give up after so many (25)")
    parser.add_argument("--after", type=int, default=3_000, help="explored requests judged of the last version (3000)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="setting of the run, a.b=value")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    *ports, ranker, blender = free_ports(len(PORTS) + 2)
    settings = [f"{name}={value.format(port)}" for (name, value), port in zip(PORTS.items(), ports, strict=True)]
    settings += [f"ranker.server.port={ranker}", f"monitor.ranker=127.0.0.1:{ranker}"]
    settings += [f"monitor.blender=127.0.0.1:{blender}", *given.overrides]
    config = ROOT / "configs/blender.yaml"
    run = load_config(config, settings)
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "freshrank.cli", "up", "--config", str(config), "--dir", f"{folder}/run"]
        argv += [part for setting in settings for part in ("--set", setting)]
        child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
        judge = Judge(run)
        try:
            seconds = follow(run, judge, child, given)
        finally:
            child.send_signal(signal.SIGINT)
            child.wait(60)
    report = {
        "seconds": round(seconds),
        "skipped": judge.skipped,
        "versions": {str(version): values.report() for version, values in sorted(judge.by_version.items())},
    }
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return int(len(judge.by_version) <= given.versions)


def follow(run: RunConfig, judge: Judge, child: "subprocess.Popen[bytes]", given: argparse.Namespace) -> float:
    """Judges what comes until enough versions have served; returns how long it took, in seconds."""
    started_s = said_s = time.monotonic()
    for found in rows(run):
        for row in found:
            judge.take(row)
        now_s = time.monotonic()
        if now_s - said_s >= 20:
            said_s = now_s
            shares = {v: values.report()["oracle_share"]["mean"] for v, values in sorted(judge.by_version.items())}
            counts = {v: values.requests for v, values in sorted(judge.by_version.items())}
            print(
                f"{now_s - started_s:5.0f} s  requests {counts}  share of the oracle's lift {shares}", file=sys.stderr
            )
        learned = [values for version, values in judge.by_version.items() if version > 0]
        is_enough = len(learned) >= given.versions and learned[-1].requests >= given.after
        if is_enough or now_s - started_s > 60 * given.minutes or child.poll() is not None:
            break
    return time.monotonic() - started_s


if __name__ == "__main__":
    sys.exit(main())
