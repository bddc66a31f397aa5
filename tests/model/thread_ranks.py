"""Ranks as threads of one process: quick, and one of them can be made to fail where a test wants it."""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from model.exceptions import RankLostError
from model.ranks import Ranks

T = TypeVar("T")
Mail = list[list["queue.Queue[bytes | None]"]]
"""By receiver and sender; None: the sender is gone."""


class ThreadRanks(Ranks):
    """A rank whose messages stay in the process; only the collectives of bytes."""

    def __init__(self, rank: int, mail: Mail) -> None:
        super().__init__(rank, len(mail), timeout_s=20.0)
        self._mail = mail

    def all_gather(self, message: bytes) -> list[bytes]:
        """Returns every rank's message."""
        self.send(message)
        received = [letters.get(timeout=self.timeout_s) for letters in self._mail[self.rank]]
        if None in received:
            raise RankLostError(f"rank {self.rank}: a peer is gone")
        return [one for one in received if one is not None]

    def gather(self, message: bytes) -> list[bytes] | None:
        """Returns every rank's message on the lead."""
        messages = self.all_gather(message)
        return messages if self.is_lead else None

    def broadcast(self, message: bytes | None) -> bytes:
        """Returns the lead's message."""
        return self.all_gather(message or b"")[0]

    def send(self, message: bytes | None) -> None:
        """Puts a message into every rank's mail."""
        for letters in self._mail:
            letters[self.rank].put(message)


def on_ranks(size: int, work: Callable[[Ranks], T]) -> list[T | Exception]:
    """Runs the work on every rank of a world. Returns what came of it, by rank: its result, or what it raised."""
    mail: Mail = [[queue.Queue() for _ in range(size)] for _ in range(size)]

    def run(rank: int) -> T | Exception:
        ranks = ThreadRanks(rank, mail)
        try:
            return work(ranks)
        except Exception as error:  # the test looks at it
            return error
        finally:
            ranks.send(None)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))
