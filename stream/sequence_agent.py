"""Decodes and filters feedback, and keeps each user's last actions of it in Redis.

At least once: what was not acknowledged comes again, and writing it twice changes nothing (`stream.sequences`).
"""

from collections.abc import Sequence

from stream.agents_config import AgentCounters, AgentsConfig
from stream.codec import EventDecoder
from stream.exceptions import DecodeError
from stream.patient import until_redis_answers
from stream.schema import Feedback, SchemaConfig
from stream.sequence_store import SequenceStore


class SequenceAgent:
    """Decodes and filters feedback, and writes it until it is written."""

    def __init__(
        self, config: AgentsConfig, schema: SchemaConfig, store: SequenceStore, counters: AgentCounters
    ) -> None:
        self._decoder = EventDecoder(schema)
        self._actions = frozenset(config.actions or (task.action for task in schema.tasks.values()))
        self._max_ahead_ms = config.max_ahead_ms
        self._store = store
        self._counters = counters

    async def write(self, values: Sequence[tuple[bytes, int]]) -> None:
        """Adds feedback, each with the time it was logged in ms, to the sequences; returns when Redis has them.

        While Redis is gone it waits and tries again, for as long as it takes.
        """
        feedback_of: dict[str, list[Feedback]] = {}
        num_kept = 0
        for value, logged_ms in values:
            feedback = self._accept(value, logged_ms)
            if feedback is not None:
                feedback_of.setdefault(feedback.user_id, []).append(feedback)
                num_kept += 1
        if feedback_of:
            await until_redis_answers(lambda: self._store.add(feedback_of), self._counters)
        self._counters.events += len(values)
        self._counters.kept += num_kept

    def _accept(self, value: bytes, logged_ms: int) -> Feedback | None:
        try:
            feedback = self._decoder.feedback(value)
        except DecodeError:
            self._counters.malformed += 1
            return None
        if feedback.action not in self._actions:
            self._counters.other_action += 1
            return None
        # One clock in the year 2099 would otherwise stay the newest action for ever.
        if logged_ms > 0 and feedback.ts > logged_ms + self._max_ahead_ms:
            self._counters.clock_ahead += 1
            return None
        return feedback
