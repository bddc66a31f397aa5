"""Where broker and Redis live: beside us, or in a network namespace whose cable can be cut.

Behind a cut, packets vanish: no refusal, no reset, nothing to tell it from a slow peer. That is what a dead switch or a
firewall does, and what a client finds hardest to notice.
"""

import itertools
import os
import subprocess
from collections.abc import Sequence

_NUMBERS = itertools.count()


class Network:
    """Loopback: everybody on one machine; it cannot be cut."""

    host = "127.0.0.1"
    """Address that the services listen on."""
    enter: Sequence[str] = ()
    """What a command line begins with to run where the services run."""
    can_cut = False

    def cut(self) -> None:
        """Lets every packet between the services and us vanish."""
        raise NotImplementedError("loopback cannot be cut")

    def mend(self) -> None:
        """Lets packets through again."""

    def close(self) -> None:
        """Takes everything away that was made."""


class Namespace(Network):
    """A namespace of its own for the services, with a pair of virtual interfaces as the cable. Needs root."""

    can_cut = True

    def __init__(self) -> None:
        """Makes namespace and cable.

        Raises:
            OSError: not allowed, or a program is missing.
        """
        number = next(_NUMBERS)
        self._name = f"drills-{os.getpid()}-{number}"
        net = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        outer, inner = f"dr{os.getpid()}a{number}"[:15], f"dr{os.getpid()}b{number}"[:15]
        self.host = f"{net}.{4 * number + 2}"
        self.enter = ("ip", "netns", "exec", self._name)
        _run("ip", "netns", "add", self._name)
        try:
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            _run("ip", "link", "set", inner, "netns", self._name)
            _run("ip", "addr", "add", f"{net}.{4 * number + 1}/30", "dev", outer)
            _run("ip", "link", "set", outer, "up")
            _run(*self.enter, "ip", "addr", "add", f"{self.host}/30", "dev", inner)
            _run(*self.enter, "ip", "link", "set", inner, "up")
            _run(*self.enter, "ip", "link", "set", "lo", "up")
            self._rules = [("INPUT", "-i", inner, "-j", "DROP"), ("OUTPUT", "-o", inner, "-j", "DROP")]
            self.cut()
            self.mend()
        except OSError:
            self.close()
            raise

    def cut(self) -> None:
        """See `Network.cut`."""
        for rule in self._rules:
            _run(*self.enter, "iptables", "-A", *rule)

    def mend(self) -> None:
        """See `Network.mend`."""
        _run(*self.enter, "iptables", "-F")

    def close(self) -> None:
        """See `Network.close`; the cable goes with the namespace."""
        _run("ip", "netns", "del", self._name)


def best_network() -> Network:
    """Returns a namespace, or loopback where none can be made."""
    try:
        return Namespace()
    except OSError:
        return Network()


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError as error:
        raise OSError(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
