"""The Redis commands that stand in the way of an answer, on one connection that all requests share.

Commands are pipelined, and replies come in the order of the commands. A caller that stops waiting leaves its place in
the queue, so a slow Redis costs no reconnect and no reply is taken for another's. A read takes 50 us here against
200 us with the client's pool; above all it takes a single turn of the event loop, so that a reply which is there in
time counts even when scoring kept the loop busy past the limit.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

Reply = bytes | list[bytes | None] | None

MAX_UNHEARD = 10
"""Timeouts without a single byte from Redis after which the connection counts as lost, though nobody has closed it."""

_BULK, _ARRAY, _ERROR = b"$*-"

CONNECT_LIMIT_S = 1.0
"""After so long an attempt to connect is given up for a new one. Where packets vanish the kernel itself tries again
after 1, 2, 4, 8, ... seconds: it would notice that they come through again as late as the outage was long."""


class RedisGets:
    """`GET` and `MGET` for one event loop. Connects when first asked and again after every loss.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with user, password, database and the files for TLS
            (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`) as the Redis client takes them.
    """

    def __init__(self, url: str) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))
        self._is_tls = url.startswith("rediss://")
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None

    async def get(self, key: str, timeout_ms: int) -> bytes | None:
        """Returns the value of `key`; None if there is none.

        Raises:
            TimeoutError, OSError, redis.exceptions.RedisError: as `mget`.
        """
        value = await self._reply(timeout_ms, "GET", key)
        assert not isinstance(value, list)
        return value

    async def mget(self, keys: Sequence[str], timeout_ms: int) -> list[bytes | None]:
        """Returns the value of each of these keys, at least one; None for those that have none.

        Raises:
            TimeoutError: no reply in time, connecting included.
            OSError, redis.exceptions.RedisError: the connection cannot be made or was lost, or Redis refuses.
        """
        values = await self._reply(timeout_ms, "MGET", *keys)
        assert isinstance(values, list)
        return values

    async def _reply(self, timeout_ms: int, *words: str) -> Reply:
        timeout_s = timeout_ms / 1000
        connection = self._connection
        if connection is None or connection.is_lost:
            connection = await asyncio.wait_for(asyncio.shield(self._connect()), timeout_s)
        reply = connection.ask(*words)
        limit = asyncio.get_running_loop().call_later(timeout_s, _give_up, reply)
        try:
            return await reply
        except TimeoutError:
            connection.unheard += 1
            if connection.unheard >= MAX_UNHEARD:
                connection.close()
            raise
        finally:
            limit.cancel()

    def _connect(self) -> "asyncio.Task[_Connection]":
        """Returns the attempt to connect, one for all who wait; it goes on when they no longer do."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(asyncio.wait_for(self._open(), CONNECT_LIMIT_S))
            self._connecting.add_done_callback(lambda attempt: attempt.cancelled() or attempt.exception())
        return self._connecting

    async def _open(self) -> "_Connection":
        options, loop = self._options, asyncio.get_running_loop()
        if "path" in options:
            _, connection = await loop.create_unix_connection(_Connection, options["path"])
        else:
            where = options.get("host", "localhost"), options.get("port", 6379)
            context = self._tls_context() if self._is_tls else None
            _, connection = await loop.create_connection(_Connection, *where, ssl=context)
        try:
            if "password" in options:
                user = [options["username"]] if "username" in options else []
                await connection.ask("AUTH", *user, options["password"])
            if options.get("db"):
                await connection.ask("SELECT", str(options["db"]))
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._options.get("ssl_ca_certs"))
        if "ssl_certfile" in self._options:
            context.load_cert_chain(self._options["ssl_certfile"], self._options.get("ssl_keyfile"))
        return context

    def close(self) -> None:
        """Closes the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    """Commands out, replies in, in the same order. Knows the replies of `GET`, `MGET`, AUTH, SELECT."""

    def __init__(self) -> None:
        self.is_lost = False
        self.unheard = 0
        """Timeouts since the last byte from Redis."""
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._received = bytearray()
        self._array: list[bytes | None] = []
        self._num_left = 0
        """Entries of the array still to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, *words: str) -> "asyncio.Future[Reply]":
        """Sends a command and returns its reply to come."""
        assert self._transport is not None, "asked before it was connected"
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append(reply)
        encoded = [word.encode() for word in words]
        self._transport.write(
            b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        )
        return reply

    def data_received(self, data: bytes) -> None:
        self.unheard = 0
        self._received += data
        while self._waiting and (settle := self._next_reply()) is not None:
            reply = self._waiting.popleft()
            if not reply.done():
                settle(reply)

    def _next_reply(self) -> Callable[["asyncio.Future[Reply]"], None] | None:
        """Takes one reply off what was received. Returns what settles its future; None: not all of it is there."""
        received, start, value = self._received, 0, None
        while (end := received.find(b"\r\n", start)) >= 0:
            kind, line, after = received[start], bytes(received[start + 1 : end]), end + 2
            if kind == _ARRAY and not self._num_left:
                self._array, self._num_left, start = [], int(line), after
                continue
            if kind == _BULK and line != b"-1":
                first, after = after, after + int(line) + 2
                if len(received) < after:
                    break
                value = bytes(received[first : after - 2])
            else:
                value = None
            start = after
            if kind == _ERROR and not self._num_left:
                del received[:start]
                error = ResponseError(line.decode(errors="replace"))
                return lambda reply: reply.set_exception(error)
            if self._num_left:
                self._array.append(value)
                self._num_left -= 1
            if not self._num_left:
                del received[:start]
                whole: Reply = value
                if self._array:
                    whole, self._array = self._array, []
                return lambda reply: reply.set_result(whole)
        del received[:start]
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        while self._waiting:
            if not (reply := self._waiting.popleft()).done():
                reply.set_exception(RedisConnectionError("connection lost"))

    def close(self) -> None:
        """Drops the connection; whoever waits gets an error."""
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()


def _give_up(reply: "asyncio.Future[Reply]") -> None:
    if not reply.done():
        reply.set_exception(TimeoutError())
