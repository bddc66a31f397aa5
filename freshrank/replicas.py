"""All processes behind one name: `joiner:8611` may be three of them, each at its own address, that come and go.

A process keeps its number for as long as its address is there; one that comes back elsewhere takes the number of one
that is gone. Who is gone counts as down for a minute and is then forgotten: it crashed, or is not wanted any more.
"""

import asyncio
import ipaddress
import itertools
import socket
from collections.abc import Mapping, Sequence

FORGET_MS = 60_000
_LOOKUP_TIMEOUT_S = 0.8


class Replicas:
    """Names for processes, from the addresses that are found anew each round. Pure."""

    def __init__(self, forget_ms: int = FORGET_MS) -> None:
        self._forget_ms = forget_ms
        self._seen: dict[str, dict[int, tuple[str, int]]] = {}
        """Process -> number -> address, and when it was last found."""
        self._numbered: set[str] = set()

    def named(self, now_ms: int, found: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Returns the address of every replica: `joiner`, or `joiner-1`, `joiner-2`, ... where there were ever several.

        `found` has, for each kind of process, the addresses there are now. The last one of a kind is never forgotten.
        """
        named: dict[str, str] = {}
        for process, addresses in found.items():
            seen = self._seen.setdefault(process, {})
            for address in addresses:
                known = (number for number, (at, _) in seen.items() if at == address)
                free = (number for number in itertools.count(1) if seen.get(number, ("", 0))[0] not in addresses)
                seen[next(known, None) or next(free)] = (address, now_ms)
            for number, (_, at_ms) in sorted(seen.items(), reverse=True):
                if now_ms - at_ms > self._forget_ms and len(seen) > 1:
                    del seen[number]
            if len(seen) > 1:
                self._numbered.add(process)
            for number, (address, _) in sorted(seen.items()):
                named[f"{process}-{number}" if process in self._numbered else process] = address
        return named


async def resolve(addresses: Sequence[str]) -> list[str]:
    """Returns every address behind each `host:port`; itself where the host is no name, or nobody knows it."""
    found = await asyncio.gather(*(_resolve(address) for address in addresses))
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


async def _resolve(address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    if host == "localhost" or _is_literal(host):
        return [address]
    loop = asyncio.get_running_loop()
    try:
        lookup = loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        infos = await asyncio.wait_for(lookup, _LOOKUP_TIMEOUT_S)
    except (OSError, TimeoutError):
        return [address]
    # A process with two kinds of addresses must not count twice.
    hosts = [info[4][0] for info in infos if info[0] == infos[0][0]]
    return sorted(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}" for host in hosts)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
