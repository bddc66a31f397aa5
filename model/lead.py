"""What one rank decides for all: the lead's word, and its errors, on every rank."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from model.exceptions import RankLostError
from model.ranks import Ranks

T = TypeVar("T", bound=msgspec.Struct)


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Sent in place of an answer: the lead ends, and why."""

    why: str


def from_lead(ranks: Ranks, work: Callable[[], T], kind: type[T]) -> T:
    """Returns, on every rank, what `work` returns on the lead; it runs there alone. `kind`: a tagged struct.

    Raises:
        RankLostError: on the others, if it raised; on the lead its own error is raised.
    """
    if ranks.size == 1:
        return work()
    if not ranks.is_lead:
        said: T = heard(ranks.broadcast(None), kind)
        return said
    try:
        answer = work()
    except Exception as error:
        ranks.broadcast(msgspec.msgpack.encode(Ended(sentence_of(error))))
        raise
    ranks.broadcast(msgspec.msgpack.encode(answer))
    return answer


def heard(message: bytes, kind: Any) -> Any:
    """Returns what the lead said, of one of the kinds given: a tagged struct, or a union of some.

    Raises:
        RankLostError: it said that it ends.
    """
    answer = msgspec.msgpack.decode(message, type=kind | Ended)
    if isinstance(answer, Ended):
        raise RankLostError(f"rank 0 ends: {answer.why}")
    return answer


def sentence_of(error: Exception) -> str:
    """Returns in one line what went wrong, for the other ranks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
