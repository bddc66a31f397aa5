"""What all commands share: their options, the stop signal, the clock, and how a failure is told."""

import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from freshrank.config import load_config
from freshrank.exits import ExitCode, explain
from freshrank.logs import LEVELS, setup_logging

_logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

OVERRIDE_HELP = "Overrides one setting of the file; may be given several times."
CONFIG_PATH = click.Path(dir_okay=False, path_type=Path)


def need_folders(*files: Path | None) -> None:
    """Refuses files that could not be written later, because their folder is not there; None is passed over.

    Raises:
        ClickException: names the first such file.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise click.ClickException(f"{file}: there is no folder {file.parent}")


def write_results(
    result: Mapping[str, Any], page: Callable[[Mapping[str, Any]], str], *, json_out: Path | None, report: Path | None
) -> None:
    """Writes what a command found, as JSON and as the page made of it; None is passed over."""
    if json_out is not None:
        json_out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if report is not None:
        report.write_text(page(result), encoding="utf-8")


def write_plots(plots: Mapping[str, str], folder: Path) -> None:
    """Writes plots by name as SVG files into a folder, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in plots.items():
        (folder / f"{name}.svg").write_text(chart + "\n", encoding="utf-8")


def run_options(default: Path | None = None) -> Callable[[F], F]:
    """Adds `--config`, `--set` and `--log-level` to a command, which gets them as one `run: RunConfig` and `level`."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_run(config: Path, overrides: tuple[str, ...], log_level: str, **rest: Any) -> Any:
            setup_logging(command.__name__, log_level)
            run = load_config(config, overrides, os.environ)
            _logger.info("Configuration read. path=%s hash=%s", config, run.config_hash())
            return command(run=run, **rest)

        fallback: dict[str, Any] = {"required": True} if default is None else {"default": default, "show_default": True}
        options = [
            click.option("--config", type=CONFIG_PATH, help="YAML file of the run.", **fallback),
            click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=OVERRIDE_HELP),
            click.option(
                "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="Least level."
            ),
        ]
        wrapped: Any = with_run
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]  # the same function with click's parameters attached

    return decorate


instance_option = click.option(
    "--instance",
    metavar="NAME",
    help="A name that no other process of this kind has: started again under it, it takes its partitions back at once "
    "instead of waiting for its former self to time out.",
)
"""For members of consumer groups (KIP-345)."""


def stop_signal() -> Callable[[], bool]:
    """Returns a function that tells whether SIGTERM or Ctrl-C has come. To be called from the main thread."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopped.is_set


def now_ms() -> int:
    """Returns the wall clock in ms since the epoch: the one clock every process is handed."""
    return time.time_ns() // 1_000_000


def elapsed_ms() -> int:
    """Returns ms on a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def fail(error: BaseException) -> ExitCode:
    """Tells a failure in one line on stderr, and logs the traceback of what nobody expected. Returns the exit code."""
    code, sentence = explain(error)
    if code is ExitCode.DEFECT:
        _logger.error("Unexpected failure.", exc_info=error)
    print(f"freshrank: {sentence}", file=sys.stderr)
    return code
