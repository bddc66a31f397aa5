"""Processes on hosts, by name, with a supervisor's manners: who ends by itself is started again."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from freshrank.children import Child
from freshrank.launch import CHILD_ENV
from freshrank.supervisor import python_argv
from tests.scale.hosts import Host

_RESTART_S = 1.5
_STOP_S = 30.0


class End(NamedTuple):
    """How a process ended by itself, or when it was asked to."""

    name: str
    code: int
    words: str
    """The last line it printed."""


class Fleet:
    """To be used from the main thread: a child ends with the thread that has started it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._argv: dict[str, Sequence[str]] = {}
        self._children: dict[str, Child] = {}
        self._due_s: dict[str, float] = {}
        self.ends: list[End] = []
        """Of all but those that were killed."""

    def start(self, name: str, host: Host | None, *command: str) -> None:
        """Starts a `freshrank` command on a host; None: on this machine."""
        self._argv[name] = (*(host.enter if host else ()), *python_argv("freshrank.cli", *command))
        self._launch(name)

    def kill(self, name: str) -> None:
        """Ends it (SIGKILL); it is started again after a moment, as everybody is who ends by itself."""
        self._children.pop(name).kill()
        self._due_s[name] = time.monotonic() + _RESTART_S

    def leave(self, name: str) -> None:
        """Ends it for good, with one SIGTERM: a second would end a ranker's drain. Returns when it has ended."""
        child = self._children.pop(name)
        os.kill(child.pid, signal.SIGTERM)
        child.ends_within(_STOP_S)
        self.ends.append(End(name, child.kill(), child.last_words()))

    def suspend(self, name: str) -> None:
        """Stops it in its tracks (SIGSTOP)."""
        self._children[name].pause()

    def resume(self, name: str) -> None:
        """Lets it go on."""
        self._children[name].resume()

    def tick(self) -> None:
        """Notes who has ended, and starts again whose time has come."""
        for name, child in list(self._children.items()):
            code = child.exit_code()
            if code is not None:
                del self._children[name]
                self.ends.append(End(name, code, child.last_words()))
                self._due_s[name] = time.monotonic() + _RESTART_S
        for name in [name for name, due_s in self._due_s.items() if due_s <= time.monotonic()]:
            del self._due_s[name]
            self._launch(name)

    def warnings(self) -> list[str]:
        """Returns the warnings and errors that all have printed so far, over all their lives, a joiner's own ones."""
        lines = [
            (path.stem, line)
            for path in sorted(self._folder.glob("joiner-*.log"))
            for line in path.read_text(errors="replace").splitlines()
        ]
        return [f"{name}: {line}" for name, line in lines if re.search(r" (WARNING|ERROR) join stream\.joiner", line)]

    def close(self) -> None:
        """Ends all, those that write first."""
        for child in self._children.values():
            child.resume()
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGTERM)
        for name, child in self._children.items():
            code = child.stop(_STOP_S)
            self.ends.append(End(name, code, child.last_words()))
        self._children.clear()

    def _launch(self, name: str) -> None:
        self._children[name] = Child(self._argv[name], self._folder / f"{name}.log", {**os.environ, **CHILD_ENV})
