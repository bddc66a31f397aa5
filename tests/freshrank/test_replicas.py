"""Names for what is behind a name: numbers stay, the gone are down for a while and then forgotten."""

import asyncio
import socket
from typing import Any

import pytest

from freshrank import replicas
from freshrank.replicas import Replicas, resolve

A, B, C = "10.0.0.1:8611", "10.0.0.2:8611", "10.0.0.3:8611"


def test_one_is_called_by_its_kind_and_several_are_numbered_from_then_on() -> None:
    names = Replicas(forget_ms=100)
    assert names.named(0, {"joiner": [A], "trainer": ["trainer:8612"]}) == {"joiner": A, "trainer": "trainer:8612"}
    assert names.named(10, {"joiner": [B, A]}) == {"joiner-1": A, "joiner-2": B}
    assert names.named(200, {"joiner": [A]}) == {"joiner-1": A}


def test_who_is_gone_is_down_for_a_while_and_then_forgotten() -> None:
    names = Replicas(forget_ms=100)
    names.named(0, {"joiner": [A, B]})
    assert names.named(100, {"joiner": [B]}) == {"joiner-1": A, "joiner-2": B}
    assert names.named(101, {"joiner": [B]}) == {"joiner-2": B}


def test_who_comes_back_elsewhere_takes_the_number_of_who_is_gone() -> None:
    names = Replicas()
    names.named(0, {"ranker": [A, B]})
    assert names.named(1, {"ranker": [B, C]}) == {"ranker-1": C, "ranker-2": B}


def test_the_last_one_is_never_forgotten_and_what_is_not_there_has_no_name() -> None:
    names = Replicas(forget_ms=100)
    names.named(0, {"joiner": [A]})
    assert names.named(1_000, {"joiner": [], "simulator": []}) == {"joiner": A}


def test_a_name_stands_for_all_its_addresses_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(_: Any, host: str, port: int, **__: Any) -> list[tuple[Any, ...]]:
        if host != "joiner":
            raise socket.gaierror("nobody knows it")
        found = [(socket.AF_INET, f"10.0.0.{n}") for n in (2, 1)] + [(socket.AF_INET6, "fd00::1")]
        return [(family, socket.SOCK_STREAM, 6, "", (at, port)) for family, at in found]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    assert asyncio.run(resolve(["joiner:8611"])) == [A, B]
    assert asyncio.run(resolve(["nobody:1", "127.0.0.1:2", "localhost:3"])) == [
        "nobody:1",
        "127.0.0.1:2",
        "localhost:3",
    ]


def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    monkeypatch.setattr(replicas, "_LOOKUP_TIMEOUT_S", 0.01)
    assert asyncio.run(resolve(["joiner:8611"])) == ["joiner:8611"]
