"""Messages decoded ahead: another thread decodes and encodes what was polled while a micro-batch is learned."""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import NamedTuple

from model.examples import DecodedExamples
from model.source import ExampleMessage, ExampleSource


class _Ahead(NamedTuple):
    message: ExampleMessage
    decoded: Future[DecodedExamples]


class DecodeAhead:
    """A source whose messages are being decoded before they are handed out, and the decoder to take them with.

    Messages come out in the order in which the source gave them, and each is decoded, or fails, as it would be without
    this; so the same bits are learned. One thread calls this, one more decodes. `close` ends it.
    """

    def __init__(self, source: ExampleSource, decode: Callable[[bytes], DecodedExamples], *, max_messages: int) -> None:
        """At most `max_messages` are held that were polled and not yet handed out."""
        self._source = source
        self._decode = decode
        self._max_messages = max_messages
        self._ahead: deque[_Ahead] = deque()
        self._out: deque[_Ahead] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")

    def partitions(self) -> Collection[int]:
        """See `ExampleSource.partitions`."""
        return self._source.partitions()

    def seek(self, offsets: Mapping[int, int]) -> None:
        """See `ExampleSource.seek`; what was decoded ahead is dropped."""
        for one in self._ahead:
            one.decoded.cancel()
        self._ahead.clear()
        self._out.clear()
        self._source.seek(offsets)

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        """See `ExampleSource.poll`: returns those polled by an earlier call that are decoded, if there are any.

        What this call polls is decoded until the next one; only where nothing else is there it waits for the first.
        """
        num_ready = len(self._ahead)
        room = self._max_messages - num_ready
        if room > 0:
            for message in self._source.poll(min(max_messages, room), 0 if num_ready else timeout_ms):
                self._ahead.append(_Ahead(message, self._pool.submit(self._decode, message.value)))
        if self._ahead:
            wait_for([self._ahead[0].decoded])
        polled: list[ExampleMessage] = []
        while self._ahead and len(polled) < min(max_messages, max(num_ready, 1)) and self._ahead[0].decoded.done():
            one = self._ahead.popleft()
            self._out.append(one)
            polled.append(one.message)
        return polled

    def finished(self) -> Collection[int]:
        """See `ExampleSource.finished`."""
        held = {one.message.partition for one in self._ahead}
        return [partition for partition in self._source.finished() if partition not in held]

    def decode(self, value: bytes) -> DecodedExamples:
        """Returns what `decode` made of a message that was polled; raises what it raised.

        One that was polled before it and was not asked for is passed over; any other is decoded here.
        """
        while self._out:
            one = self._out.popleft()
            if one.message.value is value:
                return one.decoded.result()
        return self._decode(value)

    def close(self) -> None:
        """Ends the thread, after the message that it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)
