"""What the page may change: the simulator's traffic, and faults made on purpose. Only where `monitor.controls` is on.

An order goes to the simulator's `POST /control`, or to the door of `freshrank up`, which only the monitor that it
started knows of. Any web page can make a browser send a POST here, so an order must come from our own page: its origin
is ours, it has a header that needs leave from elsewhere, and it was sent to an address of this machine, which no name
of somebody else's can be made to look like.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from freshrank.doors import own_headers
from freshrank.faults import Fault
from freshrank.places import LOOPBACK
from freshrank.simulator_door import CONTROL_HEADER, MAX_BODY_BYTES
from sim.control import MAX_REQUESTS_PER_S, MIN_REQUESTS_PER_S, SimChange

DOOR_TIMEOUT_S = 3.0
"""The supervisor looks at its door between two looks at the processes."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What somebody asks for on the page; exactly one of these."""

    requests_per_s: float | None = None
    bots_for_s: float | None = None
    open_scenario: str | None = None
    kill: str | None = None
    pause: str | None = None

    def __post_init__(self) -> None:
        if len(self.given()) != 1:
            raise ValueError(f"body: exactly one of {', '.join(self.__struct_fields__)} is allowed")

    def given(self) -> dict[str, Any]:
        """Returns what is asked for."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}

    def target(self) -> SimChange | Fault:
        """Returns it as simulator or supervisor know it.

        Raises:
            ValueError: a number beyond its range.
        """
        if self.kill is not None:
            return Fault(what="kill", name=self.kill)
        if self.pause is not None:
            return Fault(what="pause", name=self.pause)
        return SimChange(**self.given())

    def sentence(self) -> str:
        """Returns what was asked for, as the page's timeline says it."""
        ((name, value),) = self.given().items()
        return {
            "requests_per_s": "you asked for {:g} requests per second",
            "bots_for_s": "you let bots in for {:g} s: 30 % of the requests click on everything",
            "open_scenario": "you opened scenario {}, which the model does not know",
            "kill": "you killed the {}",
            "pause": "you stopped {} for 10 s",
        }[name].format(value)


def refusal_of(headers: Mapping[str, str], body: bytes) -> str | None:
    """Returns why an order is not even looked at; None if it comes from our page. Names of headers in lower case."""
    host = headers.get("host", "")
    if host.rpartition(":")[0].strip("[]") not in LOOPBACK and host not in LOOPBACK:
        return f"Host: {host!r} is not allowed; open the page at one of {', '.join(LOOPBACK)}"
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return f"Origin: {headers['origin']!r} is not allowed; only this page's own"
    if CONTROL_HEADER.lower() not in headers:
        return f"{CONTROL_HEADER}: the header is missing"
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "Content-Type: only application/json is allowed"
    if len(body) > MAX_BODY_BYTES:
        return f"body: at most {MAX_BODY_BYTES} bytes are allowed"
    return None


class Controls:
    """Carries orders to where they are done."""

    def __init__(self, simulator: str, door: Path | None) -> None:
        """Takes `host:port` of the simulator ("": none), and the supervisor's socket; None: nothing can be broken."""
        self._simulator, self._door = simulator, door

    async def can(self) -> dict[str, Any]:
        """Returns what the page may offer: processes to kill, services to stop, and the range of the rate."""
        faults: dict[str, Any] = {"kill": [], "pause": []}
        if self._door is not None:
            try:
                faults |= await self._knock(self._door, b"")
            except OSError:  # the supervisor ends, or has not begun
                pass
        rates = {"min_requests_per_s": MIN_REQUESTS_PER_S, "max_requests_per_s": MAX_REQUESTS_PER_S}
        return faults | {"traffic": rates if self._simulator else None}

    async def do(self, order: Order) -> None:
        """Has an order done.

        Raises:
            ValueError: it is refused; the sentence says why.
            OSError: nobody answered.
        """
        target = order.target()
        if isinstance(target, Fault):
            if self._door is None:
                raise ValueError("kill, pause: not allowed; this page was not started by `freshrank up`")
            answer = await self._knock(self._door, msgspec.json.encode(target))
        else:
            answer = await self._change(target)
        if "error" in answer:
            raise ValueError(answer["error"])

    async def _change(self, change: SimChange) -> dict[str, Any]:
        if not self._simulator:
            raise ValueError("monitor.simulator: is empty, so there is no traffic to change")
        headers = {"Content-Type": "application/json", CONTROL_HEADER: "monitor"} | own_headers()
        body = msgspec.json.encode(
            {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
        )
        try:
            async with httpx.AsyncClient(timeout=DOOR_TIMEOUT_S) as client:
                answer = await client.post(f"http://{self._simulator}/control", content=body, headers=headers)
            return msgspec.json.decode(answer.content, type=dict[str, Any])
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise ConnectionError(f"the simulator does not answer: {type(error).__name__}") from error

    async def _knock(self, door: Path, line: bytes) -> dict[str, Any]:
        try:
            async with asyncio.timeout(DOOR_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(str(door))
                try:
                    writer.write(line + b"\n")
                    answer = await reader.readline()
                finally:
                    writer.close()
            return msgspec.json.decode(answer, type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:  # a time-out is one
            raise ConnectionError(f"the supervisor does not answer: {type(error).__name__}") from error
