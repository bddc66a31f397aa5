"""Several ranks on this machine: each a process of its own that runs one module."""

import os
import subprocess
import sys
from pathlib import Path

from model.ranks import Ranks


def start_ranks(module: str, size: int, folder: Path, *args: str) -> list[subprocess.Popen[str]]:
    """Starts `python -m module FOLDER ARGS...` once per rank; they find each other through a file in the folder."""
    environment = os.environ | {"WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *args],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def outputs(processes: list[subprocess.Popen[str]], *, timeout_s: float = 120) -> list[str]:
    """Waits for all of them. Returns what each wrote, with its exit status on the last line."""
    try:
        texts = [process.communicate(timeout=timeout_s)[0] for process in processes]
        return [f"{text}\nexit {process.returncode}" for text, process in zip(texts, processes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def join(folder: str, *, timeout_s: float = 60.0) -> Ranks:
    """Joins the world that `start_ranks` made; in a process of its own."""
    return Ranks.join(timeout_s=timeout_s, init_method=f"file://{Path(folder).resolve()}/world")
