"""Tokens from the environment: asked for by the doors, sent by our clients, never shown."""

import base64
import logging
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freshrank.doors import api_tokens, door_tokens, own_headers
from freshrank.exits import ExitCode
from freshrank.metrics import serve_metrics
from freshrank.strict import ConfigError

REPO_ROOT = Path(__file__).parents[2]
FIRST, SECOND = "first-0123456789", "second-0123456789"
ENVIRON = {"FRESHRANK_API_TOKENS": f"{FIRST},{SECOND}"}


def test_our_clients_send_the_first_token_which_opens_every_door() -> None:
    assert own_headers(ENVIRON) == {"Authorization": f"Bearer {FIRST}"}
    assert api_tokens(ENVIRON).holder(own_headers(ENVIRON)["Authorization"]) == 0
    assert own_headers({}) == {} == own_headers({"FRESHRANK_API_TOKENS": ""})


def test_a_token_that_is_too_short_is_named_but_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"^FRESHRANK_API_TOKENS: token 2: 6 characters are not allowed") as error:
        api_tokens({"FRESHRANK_API_TOKENS": f"{FIRST},secret"})
    assert FIRST not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_alone_a_door_may_be_open(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not door_tokens("ranker.door", host, allow_anonymous=False, environ={})
    assert not caplog.records


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "ranker-1", "192.0.2.1"])
def test_a_door_that_others_reach_needs_tokens_or_a_word_that_it_needs_none(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=f"^ranker.door.allow_anonymous: false is not allowed with host {host} "):
        door_tokens("ranker.door", host, allow_anonymous=False, environ={})
    assert door_tokens("ranker.door", host, allow_anonymous=False, environ=ENVIRON)
    assert not caplog.records
    assert not door_tokens("ranker.door", host, allow_anonymous=True, environ={})
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING and "open to all" in warning.getMessage()


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        assert error.code != 401 or error.headers.get_all("Www-Authenticate")
        return error.code


def test_metrics_and_whatever_else_a_process_answers_need_a_token_but_health(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHRANK_API_TOKENS", ENVIRON["FRESHRANK_API_TOKENS"])
    seen: list[str] = []

    def around(app: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            seen.append(environ["PATH_INFO"])
            return app(environ, start_response)  # type: ignore[no-any-return]

        return answer

    port = free_port()
    serve_metrics("monitor", f"127.0.0.1:{port}", lambda: (), lambda: None, around)
    url = f"http://127.0.0.1:{port}"
    assert [_status(f"{url}{path}") for path in ("/healthz", "/metrics", "/control")] == [200, 401, 401]
    assert seen == ["/healthz"]
    basic = base64.b64encode(f":{SECOND}".encode()).decode()
    for given in (f"Bearer {FIRST}", f"Basic {basic}"):
        assert _status(f"{url}/metrics", Authorization=given) == 200
    assert _status(f"{url}/metrics", Authorization=f"Bearer {FIRST[:-1]}") == 401


@contextmanager
def page(*settings: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `freshrank monitor` in a process of its own; leaves none behind."""
    argv = [sys.executable, "-m", "freshrank.cli", "monitor", "--config", str(REPO_ROOT / "configs" / "demo.yaml")]
    argv += [part for setting in ("monitor.controls=false", *settings) for part in ("--set", setting)]
    child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ})
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "monitor.door.allow_anonymous: false is not allowed with host 0.0.0.0 and without API tokens"),
        ({"FRESHRANK_API_TOKENS": "secret"}, "FRESHRANK_API_TOKENS: token 1: 6 characters are not allowed"),
    ],
)
def test_a_page_that_would_be_open_to_all_does_not_start(environ: dict[str, str], told: str) -> None:
    with page("monitor.host=0.0.0.0", **environ) as child:
        _, errors = child.communicate(timeout=60)
    assert child.returncode == ExitCode.USAGE
    assert told in errors.splitlines()[-1] and "secret" not in errors


def test_the_page_is_behind_its_door_and_its_log_knows_no_token(
    free_port: Callable[[], int], wait_until: Callable[..., None]
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_well() -> bool:
        try:
            return _status(f"{url}/healthz") == 200
        except OSError:
            return False

    with page(f"monitor.port={port}", **ENVIRON) as child:
        wait_until(is_well, "the page answers", timeout_s=60)
        for path in ("/", "/page/app.js", "/api/state", "/metrics"):
            assert _status(f"{url}{path}") == 401
            assert _status(f"{url}{path}", Authorization=f"Bearer {SECOND}") == 200
        assert _status(f"{url}/", Authorization=f"Bearer {SECOND}x") == 401
        request = urllib.request.Request(f"{url}/", headers={"Authorization": f"Bearer {FIRST}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data:; ")
            assert b"style=" not in (text := answer.read()) and b"<script>" not in text
        child.terminate()
        _, log = child.communicate(timeout=60)
    assert "Page is served" in log
    assert FIRST not in log and SECOND not in log
