"""The processes that train one model together, and the few ways in which they speak.

Started by `torchrun`, each process is a rank of a world of several; started by itself it is a world of one. Every rank
makes the same calls in the same order, also with nothing to say. What is sent is numbers or bytes, never pickled.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from model.exceptions import RankLostError
from model.rendezvous import fresh_store

Array = npt.NDArray[Any]

_SHORT_BYTES = 1_016
"""Messages up to this length travel with their length, in one collective instead of two."""
_LENGTH_BYTES = 8


class Ranks:
    """This process's place among the ranks of a job, and their collectives. One thread only.

    In a world of one each collective is the identity and costs nothing. On several ranks host arrays and CPU tensors
    travel by gloo, CUDA tensors by NCCL. When a peer is gone or silent for `timeout_s`, every collective raises
    `RankLostError`: nothing waits for ever. After that, or after any other error, the process has to end.
    """

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        """Use `alone` or `join`."""
        self.rank = rank
        self.size = size
        self.timeout_s = timeout_s
        self.collectives_s = 0.0
        """Time spent in collectives so far, waiting for the other ranks included."""

    @classmethod
    def alone(cls) -> "Ranks":
        """Returns a world of one."""
        return cls(0, 1, 0.0)

    @classmethod
    def join(
        cls, *, device: torch.device | None = None, timeout_s: float = 300.0, init_method: str = "env://"
    ) -> "Ranks":
        """Returns this process's place in the world that torchrun's environment names; without one, a world of one.

        `RANK` and `WORLD_SIZE` are read, with `env://` also `MASTER_ADDR` and `MASTER_PORT`. `device`: where the
        arithmetic runs; the CPU if left out.

        Raises:
            ValueError: the environment names no place.
            RankLostError: not all ranks came within `timeout_s`.
        """
        size = _number_in("WORLD_SIZE", least=1, default=1)
        if size == 1:
            return cls.alone()
        ranks = cls(_number_in("RANK", least=0), size, timeout_s)
        if ranks.rank >= size:
            raise ValueError(f"RANK: {ranks.rank} is not allowed with WORLD_SIZE {size}; below it")
        timeout = timedelta(seconds=timeout_s)
        with ranks._together("join"):
            store, _, _ = next(rendezvous(init_method, rank=ranks.rank, world_size=size, timeout=timeout))
            dist.init_process_group(
                "gloo" if device is None or device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=fresh_store(store, ranks.rank, size, timeout_s),
                rank=ranks.rank,
                world_size=size,
                timeout=timeout,
            )
            ranks.barrier()  # so that a rank that comes too late is missed here and not in the first step
        return ranks

    @property
    def is_lead(self) -> bool:
        """Whether this rank speaks for all: rank 0."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the world; the others must have nothing more to ask."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.any(False)

    def any(self, condition: bool) -> bool:
        """Returns whether it holds on any rank."""
        if self.size == 1:
            return condition
        (num,) = self.sum_arrays([np.array(condition, np.int64)])
        return bool(num)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds up a contiguous tensor over the ranks, in place: the same bits on all of them. Returns it."""
        if self.size > 1 and tensor.numel():
            with self._together("sum"):
                dist.all_reduce(tensor)
        return tensor

    def sum_arrays(self, arrays: Sequence[Array]) -> list[Array]:
        """Returns several small arrays, each added up over the ranks, at the price of one collective.

        They have the same shapes on every rank. Added up as float64 (integers are exact up to 2^53) and given back as
        their own type; a bool is true where it is on any rank.
        """
        if self.size == 1:
            return list(arrays)
        flat = np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])
        self.sum_(torch.from_numpy(flat))
        summed = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
        return [one.reshape(array.shape).astype(array.dtype) for one, array in zip(summed, arrays, strict=True)]

    def exchange(self, arrays: Sequence[Array]) -> list[Array]:
        """Sends `arrays[r]` to rank r. Returns what each rank sent here, by rank.

        Arrays are [K] or [K, ...] of any K, of one type and width on all ranks. What a rank sends to itself comes back.
        """
        if self.size == 1:
            return list(arrays)
        lengths = torch.tensor([len(array) for array in arrays])
        coming = torch.empty_like(lengths)
        with self._together("exchange"):
            dist.all_to_all_single(coming, lengths)
        received = self.exchange_tensors([torch.from_numpy(array) for array in arrays], coming.tolist())
        return [tensor.numpy() for tensor in received]

    def exchange_tensors(self, tensors: Sequence[Tensor], num_rows: Sequence[int]) -> list[Tensor]:
        """Sends `tensors[r]` to rank r. Returns what each rank sent here, of which `num_rows` says how many rows it is.

        Tensors are [K] or [K, ...], of one type, width and device on all ranks.
        """
        if self.size == 1:
            return list(tensors)
        sent = torch.cat(list(tensors))
        received = sent.new_empty(sum(num_rows), *sent.shape[1:])
        with self._together("exchange"):
            dist.all_to_all_single(received, sent, list(num_rows), [len(tensor) for tensor in tensors])
        return list(torch.split(received, list(num_rows)))

    def gather(self, message: bytes) -> list[bytes] | None:
        """Returns every rank's message, by rank, on the lead; None on the others."""
        if self.size == 1:
            return [message]
        nothing = np.empty(0, np.uint8)
        received = self.exchange([np.frombuffer(bytearray(message), np.uint8), *[nothing] * (self.size - 1)])
        return [one.tobytes() for one in received] if self.is_lead else None

    def all_gather(self, message: bytes) -> list[bytes]:
        """Returns every rank's message, by rank; made for short ones (one collective up to 1,016 bytes)."""
        if self.size == 1:
            return [message]
        heads = [torch.empty(_LENGTH_BYTES + _SHORT_BYTES, dtype=torch.uint8) for _ in range(self.size)]
        with self._together("gather"):
            dist.all_gather(heads, _head(message))
        lengths = [_length_in(head) for head in heads]
        if max(lengths) <= _SHORT_BYTES:
            return [_start_in(head, length) for head, length in zip(heads, lengths, strict=True)]
        whole = (
            torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)
        )
        return [one.numpy().tobytes() for one in self.exchange_tensors([whole] * self.size, lengths)]

    def broadcast(self, message: bytes | None) -> bytes:
        """Returns the lead's message on every rank; what the others give is passed over."""
        if self.size == 1:
            assert message is not None
            return message
        if self.is_lead:
            assert message is not None
            head = _head(message)
        else:
            head = torch.empty(_LENGTH_BYTES + _SHORT_BYTES, dtype=torch.uint8)
        with self._together("broadcast"):
            dist.broadcast(head, 0)
            length = _length_in(head)
            if length <= _SHORT_BYTES:
                return _start_in(head, length)
            whole = torch.empty(length, dtype=torch.uint8)
            if message is not None and self.is_lead:
                whole = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            dist.broadcast(whole, 0)
        return whole.numpy().tobytes()

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
            self.collectives_s += time.perf_counter() - started_s
        except RuntimeError as error:  # torch has no other type for what its transports report
            reason = str(error).strip().splitlines()[0].partition(". ")[0]
            raise RankLostError(
                f"rank {self.rank} of {self.size}, {what}: a peer is gone, or silent for {self.timeout_s:g} s: {reason}"
            ) from error


def _number_in(variable: str, *, least: int, default: int | None = None) -> int:
    text = os.environ.get(variable, None if default is None else str(default))
    if text is None or not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"{variable}: {text!r} is not allowed; a whole number of at least {least}, as torchrun sets it"
        )
    return int(text)


def _head(message: bytes) -> Tensor:
    """Returns a message's length and, if it is short, itself, in a block of fixed size."""
    start = message if len(message) <= _SHORT_BYTES else b""
    block = len(message).to_bytes(_LENGTH_BYTES, "little") + start
    return torch.frombuffer(bytearray(block.ljust(_LENGTH_BYTES + _SHORT_BYTES, b"\0")), dtype=torch.uint8)


def _length_in(head: Tensor) -> int:
    return int.from_bytes(head[:_LENGTH_BYTES].numpy().tobytes(), "little")


def _start_in(head: Tensor, length: int) -> bytes:
    return head[_LENGTH_BYTES : _LENGTH_BYTES + length].numpy().tobytes()
