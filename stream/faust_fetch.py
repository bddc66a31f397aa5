"""aiokafka's fetcher as the agents need it: committed messages only, and a pause after an empty answer.

Faust reads what transactions have not committed, or have aborted, unless it writes in transactions itself; there is
no setting for it. The joiner writes `examples` in transactions.

A Kafka broker holds a fetch until there is something or its time is over. The embedded one answers at once, and a
client that asks again at once spends two fifths of a core on it. On Kafka the pause is never noticed.
"""

import asyncio
import contextlib
from typing import Any

from aiokafka.consumer import consumer
from aiokafka.consumer.fetcher import Fetcher

_PAUSE_S = 0.02


class CommittedFetcher(Fetcher):  # type: ignore[misc]  # aiokafka has no types
    """Reads committed messages, and asks again `_PAUSE_S` after an answer that brought nothing."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"isolation_level": "read_committed"})

    async def _proc_fetch_request(self, assignment: Any, node_id: Any, request: Any) -> Any:
        has_news = await super()._proc_fetch_request(assignment, node_id, request)
        if not has_news:
            # Cancelled is how it is told that nobody wants the answer any more; it ends quietly, as it does elsewhere.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_PAUSE_S)
        return has_news


def install_fetcher() -> None:
    """Makes every consumer that is created from now on use a `CommittedFetcher`."""
    consumer.Fetcher = CommittedFetcher
