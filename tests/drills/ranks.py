"""Kill ranks of a training job: `python -m tests.drills.ranks [--kills 20] [--ranks 2] [--seed 0] [--json FILE]`.

torchrun starts ranks that train a log of known length. One of them is killed with SIGKILL, again and again: which, and
when, the seed says. In the end every rank must have the bits that it has without kills, and have counted every message
and every example once.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.__main__ import machine
from model.examples import ExampleDecoder
from model.features import FeatureEncoder
from tests.drills.rank_child import CHECKPOINT_MS, MODEL
from tests.model.example_log import SCHEMA, partition_log
from tests.model.train_child import write_log

Figures = dict[str, Any]

_TIMEOUT_S = 300.0
_KILLED_WHILE_STARTING = 0.25
"""Share of the kills whose time begins when all ranks are started; that of the others, when the first step is made."""
_LONGEST_LIFE_S = 2.0
"""A rank is killed so long after that, at most."""


def drill(folder: Path, *, num_ranks: int, num_kills: int, num_messages: int, seed: int) -> Figures:
    """Kills ranks that train a log in a new folder. Returns the figures; `problems` is what is not as it must be."""
    log = {p: partition_log(seed=seed + p, num_messages=num_messages) for p in range(2 * num_ranks)}
    write_log(folder / "log", log)
    (folder / "slow").touch()
    kills: list[Figures] = []
    chance = random.Random(seed)
    with (folder / "output").open("w") as output, _torchrun(folder, num_ranks, num_kills, output) as job:
        try:
            for number in range(num_kills + 1):
                _wait(job, lambda n=number: _are_started(folder, num_ranks, restart=n))  # type: ignore[misc]
                if kills:
                    kills[-1]["started_again_s"] = round(time.time() - kills[-1]["at"], 2)
                if number == num_kills:
                    break
                if chance.random() > _KILLED_WHILE_STARTING:
                    _wait(job, (folder / f"training-{number}").exists)
                time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
                kills.append(_kill(folder, number, chance.randrange(num_ranks)))
            (folder / "slow").unlink()
            _wait(job, lambda: job.poll() is not None)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it wrote:\n{(folder / 'output').read_text()[-5_000:]}") from error
        finally:
            job.send_signal(signal.SIGTERM)
            job.wait(_TIMEOUT_S)
    trained = sorted(_told(path)["at"] for path in folder.glob("training-*"))
    for kill in kills:
        kill["training_again_s"] = round(min((at for at in trained if at > kill["at"]), default=np.inf) - kill["at"], 2)
        del kill["at"]
    problems = list(_problems(folder, job.returncode, num_ranks, num_kills, log))
    return {
        "ranks": num_ranks,
        "messages": num_messages * len(log),
        "checkpoint_interval_ms": CHECKPOINT_MS,
        "kills": len(kills),
        "kills_while": dict(Counter(kill["while"] for kill in kills)),
        "restarts": _told(folder / "started-0")["restart"],
        "started_again_s": _median_and_max([kill["started_again_s"] for kill in kills]),
        "training_again_s": _median_and_max([kill["training_again_s"] for kill in kills]),
        "load_average": round(os.getloadavg()[2], 1),
        "problems": problems,
        "each": kills,
    }


def _torchrun(folder: Path, num_ranks: int, num_kills: int, output: Any) -> "subprocess.Popen[bytes]":
    argv = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
        *(f"--nproc-per-node={num_ranks}", f"--max-restarts={num_kills}", "--monitor-interval=0.1"),
        *("-m", "tests.drills.rank_child", str(folder)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(argv, stdout=output, stderr=output, env=environment)


def _wait(job: "subprocess.Popen[bytes]", condition: Callable[[], object]) -> None:
    """Waits for something that the job is to do.

    Raises:
        TimeoutError: it did not, or ended.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s or job.poll() is not None:
            raise TimeoutError(f"the job did not go on; its exit code: {job.poll()}")
        time.sleep(0.02)


def _are_started(folder: Path, num_ranks: int, restart: int) -> bool:
    paths = [folder / f"started-{rank}" for rank in range(num_ranks)]
    return all(path.exists() and _told(path)["restart"] == restart for path in paths)


def _kill(folder: Path, number: int, rank: int) -> Figures:
    """Kills a rank. Returns which, when, and what the job was doing."""
    if any((folder / "checkpoints").glob(".aside-*")):
        phase = "saving"
    else:
        phase = "training" if (folder / f"training-{number}").exists() else "starting"
    os.kill(_told(folder / f"started-{rank}")["pid"], signal.SIGKILL)
    return {"rank": rank, "while": phase, "at": time.time()}


def _problems(
    folder: Path, exit_code: int, num_ranks: int, num_kills: int, log: Mapping[int, list[bytes]]
) -> Iterator[str]:
    """Yields what is not as it must be after the job has ended."""
    if exit_code:
        yield f"torchrun ended with {exit_code}: {(folder / 'output').read_text()[-2_000:]}"
        return
    decoder = ExampleDecoder(SCHEMA, FeatureEncoder(SCHEMA, MODEL.encoding))
    num_examples = sum(decoder.decode(value).rows.num_rows for messages in log.values() for value in messages)
    expected = {"messages": sum(map(len, log.values())), "examples": num_examples, "skipped": 0}
    positions = {str(partition): len(messages) for partition, messages in log.items()}
    for rank in range(num_ranks):
        killed, undisturbed = (folder / f"{name}-{rank}" for name in ("killed", "undisturbed"))
        counts = _told(killed.with_suffix(".json"))
        if counts != _told(undisturbed.with_suffix(".json")):
            yield f"rank {rank} counted {counts}, undisturbed {_told(undisturbed.with_suffix('.json'))}"
        if counts["positions"] != positions or any(counts[name] != number for name, number in expected.items()):
            yield f"rank {rank} counted {counts}; the log has {expected}, and ends at {positions}"
        ours, theirs = load_file(killed.with_suffix(".safetensors")), load_file(undisturbed.with_suffix(".safetensors"))
        if ours.keys() != theirs.keys():
            yield f"rank {rank} has other tensors: {sorted(ours.keys() ^ theirs.keys())}"
        for name in ours.keys() & theirs.keys():
            if not torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()):
                yield f"rank {rank} has other bits: {name}"
    if _told(folder / "started-0")["restart"] != num_kills:
        yield f"{_told(folder / 'started-0')['restart']} restarts after {num_kills} kills"


def _median_and_max(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(float(np.median(values)), 2), "max": max(values)}


def _told(path: Path) -> Figures:
    told: Figures = json.loads(path.read_text())
    return told


def main() -> int:
    """Does the drill; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills.ranks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--messages", type=int, default=200, help="of each partition; there are two per rank")
    parser.add_argument("--seed", type=int, default=0, help="of the log, and of who is killed when")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="freshrank-ranks-") as folder:
        figures = drill(
            Path(folder),
            num_ranks=given.ranks,
            num_kills=given.kills,
            num_messages=given.messages,
            seed=given.seed,
        )
    again_s = figures["training_again_s"]
    print(f"{figures['kills']} kills of {figures['ranks']} ranks, while {figures['kills_while']}")
    print(f"{figures['restarts']} restarts; training again after {again_s['median']} s, at most {again_s['max']} s")
    print(f"load of this machine meanwhile: {figures['load_average']} on {os.cpu_count()} cores")
    for problem in figures["problems"]:
        print(f"    ! {problem}")
    if given.json is not None:
        command = f"python -m tests.drills.ranks --kills {given.kills} --ranks {given.ranks} --seed {given.seed}"
        given.json.write_text(json.dumps({"machine": machine(), "command": command, "run": figures}, indent=1) + "\n")
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
