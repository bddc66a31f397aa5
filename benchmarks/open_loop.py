"""Open-loop HTTP load: requests leave on schedule whether or not earlier ones are back.

A latency counts from the moment a request *should* have left. So a server that stalls is charged for everybody who
waited behind the stall, and not only for the one request that saw it (coordinated omission).
"""

import asyncio
import time
from collections.abc import Sequence

SPIN_S = 0.002
"""The last stretch before a send is waited out actively: timers of the event loop are a millisecond coarse."""


async def open_loop(
    host: str, port: int, path: str, bodies: Sequence[bytes], *, per_s: float, duration_s: float
) -> tuple[list[float], list[bytes]]:
    """Returns the latency in ms of each request, in order of sending, and the bodies of the answers.

    Raises:
        RuntimeError: an answer was not 200.
    """
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    requests = [_request(host, path, body) for body in bodies]

    async def one(due_s: float, request: bytes) -> tuple[float, bytes]:
        while idle and idle[-1][0].at_eof():
            idle.pop()[1].close()  # the server does not keep what nobody has used for a while
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, port)
        writer.write(request)
        answer = await _answer(reader)
        latency_ms = (time.perf_counter() - due_s) * 1000
        idle.append((reader, writer))
        return latency_ms, answer

    tasks = []
    start_s = time.perf_counter() + 0.05
    for number in range(round(per_s * duration_s)):
        due_s = start_s + number / per_s
        if (early_s := due_s - SPIN_S - time.perf_counter()) > 0:
            await asyncio.sleep(early_s)
        while time.perf_counter() < due_s:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(due_s, requests[number % len(requests)])))
    results = await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return [latency_ms for latency_ms, _ in results], [answer for _, answer in results]


def _request(host: str, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(length)
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"{head!r}: {body[:200]!r}")
    return body
