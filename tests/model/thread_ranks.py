"""Ranks as threads of one process: quick, and one of them can be made to fail where a test wants it."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.exceptions import RankLostError
from model.ranks import Array, Ranks

T = TypeVar("T")
_GONE = object()
Mail = list[list["queue.Queue[Any]"]]
"""By receiver and sender; `_GONE`: nothing more will come."""


class ThreadRanks(Ranks):
    """A rank whose messages stay in the process."""

    def __init__(self, rank: int, mail: Mail) -> None:
        super().__init__(rank, len(mail), timeout_s=60.0)
        self._mail = mail

    def sum_(self, tensor: Tensor) -> Tensor:
        """See `Ranks.sum_`."""
        with torch.no_grad():
            return tensor.copy_(torch.stack(self._swap([tensor.clone()] * self.size)).sum(dim=0))

    def exchange(self, arrays: Sequence[Array]) -> list[Array]:
        """See `Ranks.exchange`."""
        return self._swap([array.copy() for array in arrays])

    def exchange_tensors(self, tensors: Sequence[Tensor], num_rows: Sequence[int]) -> list[Tensor]:
        """See `Ranks.exchange_tensors`."""
        received: list[Tensor] = self._swap([tensor.detach().clone() for tensor in tensors])
        assert [len(tensor) for tensor in received] == list(num_rows)
        return received

    def all_gather(self, message: bytes) -> list[bytes]:
        """See `Ranks.all_gather`."""
        return self._swap([message] * self.size)

    def gather(self, message: bytes) -> list[bytes] | None:
        """See `Ranks.gather`."""
        messages = self.all_gather(message)
        return messages if self.is_lead else None

    def broadcast(self, message: bytes | None) -> bytes:
        """See `Ranks.broadcast`."""
        return self.all_gather(message or b"")[0]

    def _swap(self, letters: Sequence[Any]) -> list[Any]:
        """Sends `letters[r]` to rank r. Returns what each rank sent here."""
        for rank, letter in enumerate(letters):
            self._mail[rank][self.rank].put(letter)
        received = [mail.get(timeout=self.timeout_s) for mail in self._mail[self.rank]]
        if any(letter is _GONE for letter in received):
            raise RankLostError(f"rank {self.rank}: a peer is gone")
        return received

    def leave(self) -> None:
        """Lets the others find that this rank is gone."""
        for mail in self._mail:
            mail[self.rank].put(_GONE)


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
            ranks.leave()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))
