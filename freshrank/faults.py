"""What can be broken on purpose in a run of `freshrank up`, so that one can watch it recover."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from freshrank.embedded import Service
    from freshrank.supervisor import Supervisor

KILLABLE = ("trainer", "joiner", "ranker", "agents")
PAUSE_MS = 10_000
"""How long a service is stopped."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An order to the door of `freshrank up`."""

    what: Literal["kill", "pause"]
    name: str
    """Process or service."""


class Faults:
    """Kills processes and stops services for a while. One thread only, the supervisor's."""

    def __init__(self, supervisor: "Supervisor", services: "list[Service]", now_ms: Callable[[], int]) -> None:
        """`now_ms` is a clock that never moves back."""
        self._supervisor = supervisor
        self._services = {service.name: service for service in services if service.name == "redis"}
        self._now_ms = now_ms
        self._resume_ms: dict[str, int] = {}

    def can(self) -> dict[str, list[str]]:
        """Returns what can be broken, by the word for it."""
        running = {status.name for status in self._supervisor.status()}
        return {"kill": [name for name in KILLABLE if name in running], "pause": list(self._services)}

    def do(self, fault: Fault) -> None:
        """Breaks something.

        Raises:
            ValueError: it is not here to be broken, or not now.
        """
        allowed = self.can()[fault.what]
        if fault.name not in allowed:
            raise ValueError(f"{fault.what}: {fault.name} is not allowed; {', '.join(allowed) or 'nothing is'}")
        if fault.what == "kill":
            if not self._supervisor.kill(fault.name):
                raise ValueError(f"kill: {fault.name} does not run at the moment")
            return
        self._services[fault.name].process.pause()
        self._resume_ms[fault.name] = self._now_ms() + PAUSE_MS

    def poll(self) -> None:
        """Lets services go on whose pause is over."""
        for name in [name for name, due_ms in self._resume_ms.items() if self._now_ms() >= due_ms]:
            del self._resume_ms[name]
            self._services[name].process.resume()

    def end(self) -> None:
        """Lets all services go on."""
        for name in self._resume_ms:
            self._services[name].process.resume()
        self._resume_ms.clear()
