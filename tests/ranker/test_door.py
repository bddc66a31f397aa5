"""The door: who comes in, how often, with how much, and what becomes of the rest. Without a socket."""

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from ranker.door import LARGEST_BODIES, MAX_CLIENTS, Door, DoorConfig, Message, Rate
from ranker.tokens import Tokens

OLD, NEW = "old-token-0123456789", "new-token-0123456789"
Answer = tuple[int, dict[str, str], Any]


class Visitor:
    """Sends requests to a door, behind which an application echoes the body, when it is allowed to."""

    def __init__(self, config: DoorConfig | None = None, tokens: str = "", max_body_bytes: int = 100) -> None:
        self.turned_away: Counter[str] = Counter()
        self.now_s = 50.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.num_waiting = 0
        self.door = Door(
            self._echo,
            config or DoorConfig(),
            Tokens.parse(tokens),
            max_body_bytes=max_body_bytes,
            turned_away=self.turned_away,
            elapsed_s=lambda: self.now_s,
        )

    async def _echo(self, scope: Any, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        self.num_waiting += 1
        message = await receive() if scope["method"] == "POST" else {"body": b""}
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": msgspec.json.encode(message["body"].decode())})

    async def ask(
        self,
        *parts: bytes,
        path: str = "/v1/rank",
        method: str = "POST",
        address: str = "192.0.2.1",
        is_cut: bool = False,
        **headers: str,
    ) -> Answer:
        """Returns status, headers and decoded body; `is_cut`: the body never ends."""
        pieces = list(parts) or [b""]
        sent: list[Message] = []

        async def receive() -> Message:
            if pieces:
                part = pieces.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(pieces) or is_cut}
            return await asyncio.Event().wait() or {}

        async def send(message: Message) -> None:
            sent.append(message)

        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "path": path, "method": method, "headers": given, "client": (address, 1)}
        await self.door(scope, receive, send)
        start, body = sent
        shown = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], shown, msgspec.json.decode(body["body"])


def run(visit: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(visit())  # type: ignore[arg-type]  # the tests below are coroutines


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


@pytest.mark.parametrize("given", [f"Bearer {OLD}", f"bearer {NEW}", basic(NEW)])
def test_each_token_of_the_list_opens_in_either_form(given: str) -> None:
    async def visit() -> None:
        visitor = Visitor(tokens=f"{OLD}, {NEW}")
        assert await visitor.ask(b"hello", authorization=given) == (200, {}, "hello")

    run(visit)


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {OLD[:-1]}", f"Bearer {OLD}x", OLD, f"Digest {OLD}", "Basic !", "Basic é",
     basic("") , "Bearer \udcff".encode("utf-8", "replace").decode()],
)  # fmt: skip
def test_without_a_token_nobody_comes_in_and_is_told_how(given: str | None) -> None:
    async def visit() -> None:
        visitor = Visitor(tokens=OLD)
        for method, path in (("POST", "/v1/rank"), ("GET", "/metrics"), ("GET", "/v1/model"), ("POST", "/v1/health")):
            headers = {} if given is None else {"authorization": given}
            status, headers, answer = await visitor.ask(b"hello", method=method, path=path, **headers)
            assert (status, answer) == (401, {"error": "Authorization: a valid API token is needed"})
            assert "www-authenticate" in headers
        assert visitor.num_waiting == 0 and visitor.turned_away == {"token": 4}

    run(visit)


def test_whether_it_is_well_is_told_to_anybody_however_often() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(max_requests_per_s=1), tokens=OLD)
        for _ in range(5):
            assert (await visitor.ask(method="GET", path="/v1/health"))[0] == 200

    run(visit)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("short", "token 1: 5 characters are not allowed; at least 16"),
        (f"{OLD},", "token 2: 0 characters are not allowed; at least 16"),
        (f"{OLD},has a space 0123456789", "token 2: has a character that is not allowed; letters, digits and ._~+/=-"),
    ],
)
def test_a_token_that_cannot_be_used_is_named_by_its_place(text: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        Tokens.parse(text)
    assert str(error.value) == told


def test_without_any_token_the_door_is_open() -> None:
    assert not Tokens.parse(" ") and Tokens.parse(OLD)
    run(lambda: _is_let_in(Visitor()))


async def _is_let_in(visitor: Visitor) -> None:
    assert (await visitor.ask(b"hello"))[0] == 200


@pytest.mark.parametrize(("origin", "status"), [("http://here:1", 200), ("http://there:1", 403), ("null", 403)])
def test_pages_of_other_addresses_may_not_ask(origin: str, status: int) -> None:
    async def visit() -> None:
        visitor = Visitor()
        assert (await visitor.ask(b"", host="here:1", origin=origin))[0] == status
        assert visitor.turned_away == ({} if status == 200 else {"origin": 1})

    run(visit)


def test_a_compressed_body_is_refused_unread() -> None:
    async def visit() -> None:
        visitor = Visitor()
        status, _, answer = await visitor.ask(b"", content_encoding="gzip")
        assert (status, answer) == (415, {"error": "Content-Encoding: is not allowed; send it as it is"})
        assert (await visitor.ask(b"", content_encoding="identity"))[0] == 200

    run(visit)


@pytest.mark.parametrize(
    ("parts", "headers"),
    [([b"x" * 101], {}), ([b"x" * 60, b"x" * 41], {}), ([b""], {"content_length": "101"}),
     ([b""], {"content_length": "9" * 400})],
)  # fmt: skip
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(
    parts: list[bytes], headers: dict[str, str]
) -> None:
    async def visit() -> None:
        visitor = Visitor()
        status, _, answer = await visitor.ask(*parts, **headers)
        assert (status, answer) == (413, {"error": "body: more than 100 bytes are not allowed"})
        assert visitor.num_waiting == 0
        assert await visitor.ask(b"x" * 60, b"x" * 40) == (200, {}, "x" * 100)

    run(visit)


def test_a_body_that_does_not_come_is_waited_for_so_long_and_no_longer() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(body_timeout_ms=100))
        status, headers, answer = await visitor.ask(b"{", is_cut=True)
        assert (status, answer) == (408, {"error": "body: was not there within 100 ms"})
        assert headers["connection"] == "close"

    run(visit)


def test_one_client_has_so_many_requests_per_second_and_others_have_their_own() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(max_requests_per_s=2), tokens=f"{OLD},{NEW}")
        old, new = {"authorization": f"Bearer {OLD}"}, {"authorization": f"Bearer {NEW}"}
        assert [(await visitor.ask(**old))[0] for _ in range(3)] == [200, 200, 429]
        status, headers, answer = await visitor.ask(address="198.51.100.7", **old)  # it is the token that counts
        assert (status, headers["retry-after"]) == (429, "1")
        assert answer == {"error": "more than 2 requests per second are not allowed"}
        assert (await visitor.ask(**new))[0] == 200
        visitor.now_s += 0.5
        assert [(await visitor.ask(**old))[0] for _ in range(2)] == [200, 429]

    run(visit)


def test_without_tokens_an_address_is_a_client() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(max_requests_per_s=1))
        assert [(await visitor.ask(address=a))[0] for a in ("192.0.2.1", "192.0.2.1", "192.0.2.2")] == [200, 429, 200]

    run(visit)


def test_the_rate_of_countless_clients_is_not_remembered_for_ever() -> None:
    rate = Rate(1.0, lambda: 0.0)
    for client in range(MAX_CLIENTS + 50):
        assert rate.wait_s(client) == 0
    assert len(rate._full_at_s) == MAX_CLIENTS
    assert rate.wait_s(MAX_CLIENTS + 49) == 1


def test_what_comes_at_once_is_shed_before_anybody_is_answered_and_all_is_well_afterwards() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(max_in_progress=3))
        answers = await asyncio.gather(*(visitor.ask(b"x") for _ in range(8)))
        assert [status for status, _, _ in answers].count(503) == 5
        shed = next(answer for answer in answers if answer[0] == 503)
        assert shed[1]["retry-after"] == "1" and shed[2] == {"error": "too many requests at once: try again"}
        assert visitor.turned_away == {"busy": 5} and visitor.num_waiting == 3
        assert (await visitor.ask(b"x"))[0] == 200

    run(visit)


def test_bodies_that_arrive_have_no_place_yet_but_little_memory_together() -> None:
    async def visit() -> None:
        visitor = Visitor(DoorConfig(max_in_progress=1, body_timeout_ms=100))
        slow = [asyncio.create_task(visitor.ask(b"x" * 100, is_cut=True)) for _ in range(LARGEST_BODIES)]
        await asyncio.sleep(0.01)
        assert (await visitor.ask(b"x"))[0] == 503
        assert {status for status, _, _ in await asyncio.gather(*slow)} == {408}
        assert (await visitor.ask(b"x"))[0] == 200

    run(visit)


def test_a_client_that_goes_before_the_end_of_its_body_leaves_nothing() -> None:
    async def visit() -> None:
        visitor = Visitor()
        messages: list[Message] = [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "path": "/v1/rank", "method": "POST", "headers": [], "client": None}
        await visitor.door(scope, receive, send)
        assert visitor.num_waiting == 0 and visitor.door._held_bytes == 0

    run(visit)


@pytest.mark.parametrize(
    "settings",
    [{"max_requests_per_s": -1.0}, {"max_requests_per_s": float("nan")}, {"max_requests_per_s": float("inf")},
     {"max_in_progress": 0}, {"body_timeout_ms": 99}],
)  # fmt: skip
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        DoorConfig(**settings)
