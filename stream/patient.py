"""Waiting for a Redis that is gone: an agent has nowhere else to put its results, so it stops until they are taken."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from redis.exceptions import RedisError

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0


class CountsFailures(Protocol):
    """Whoever counts how often Redis did not answer."""

    redis_failures: int


async def until_redis_answers(ask: Callable[[], Awaitable[_Answer]], counters: CountsFailures) -> _Answer:
    """Returns what `ask` does; while Redis is gone it waits, longer each time, and asks again."""
    wait_s = 0.0
    while True:
        try:
            answer = await ask()
        except (RedisError, OSError) as error:
            counters.redis_failures += 1
            if not wait_s:
                _LOG.warning("Redis does not answer, trying until it does. error=%s", error)
            wait_s = min(2 * wait_s or _FIRST_WAIT_S, _LONGEST_WAIT_S)
            await asyncio.sleep(wait_s)
            continue
        if wait_s:
            _LOG.info("Redis answers again.")
        return answer
