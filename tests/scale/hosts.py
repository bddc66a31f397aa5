"""Hosts: network namespaces with an address of their own on one bridge, whose cables can be cut. Needs root."""

import itertools
import os
import subprocess
from pathlib import Path

_NUMBERS = itertools.count()
_NETNS = Path("/etc/netns")
"""What lies in a folder of a namespace's name here is seen in /etc by what runs there (ip-netns(8))."""


class Host:
    """One namespace on a switch."""

    def __init__(self, name: str, address: str, namespace: str) -> None:
        """Is made by `Switch.add`."""
        self.name, self.address, self._namespace = name, address, namespace
        self.enter = ("ip", "netns", "exec", namespace)
        """What a command line begins with to run there."""

    def cut(self) -> None:
        """Lets every packet from and to this host vanish; nobody is told."""
        for chain in ("INPUT", "OUTPUT"):
            run(*self.enter, "iptables", "-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")

    def mend(self) -> None:
        """Lets packets through again."""
        run(*self.enter, "iptables", "-F")

    def close(self) -> None:
        """Takes it away, its cable too."""
        run("ip", "netns", "del", self._namespace)


class Switch:
    """A bridge that hosts are plugged into; this machine is on it too, at `address`."""

    def __init__(self) -> None:
        """Makes it.

        Raises:
            OSError: not allowed, or a program is missing.
        """
        number = next(_NUMBERS)
        self._name = f"scale-{os.getpid()}-{number}"
        self._bridge = f"sc{os.getpid()}b{number}"[:15]
        self._net = f"10.{192 + (os.getpid() + number) % 32}.{os.getpid() // 32 % 256}"
        self.address = f"{self._net}.1"
        self._hosts: dict[str, Host] = {}
        # Whoever forwards for others (Docker) may have closed bridges for all who are not theirs.
        self._pass = ("FORWARD", "-i", self._bridge, "-o", self._bridge, "-j", "ACCEPT")
        run("ip", "link", "add", self._bridge, "type", "bridge")
        try:
            run("ip", "addr", "add", f"{self.address}/24", "dev", self._bridge)
            run("ip", "link", "set", self._bridge, "up")
            run("iptables", "-I", *self._pass)
        except OSError:
            self.close()
            raise

    def add(self, name: str) -> Host:
        """Returns a new host.

        Raises:
            OSError: not allowed.
        """
        number = len(self._hosts) + 2
        host = Host(name, f"{self._net}.{number}", f"{self._name}-{name}")
        self._hosts[name] = host
        ours, theirs = f"{self._bridge[:11]}h{number}", f"{self._bridge[:11]}n{number}"
        run("ip", "netns", "add", f"{self._name}-{name}")
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs)
        run("ip", "link", "set", theirs, "netns", f"{self._name}-{name}")
        run("ip", "link", "set", ours, "master", self._bridge, "up")
        run(*host.enter, "ip", "addr", "add", f"{host.address}/24", "dev", theirs)
        run(*host.enter, "ip", "link", "set", theirs, "up")
        run(*host.enter, "ip", "link", "set", "lo", "up")
        return host

    def use_names_of(self, host: Host, server: str) -> None:
        """Lets what runs on a host look names up at `server`, port 53."""
        folder = _NETNS / f"{self._name}-{host.name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(f"nameserver {server}\n")

    def close(self) -> None:
        """Takes all hosts and the bridge away; what could not be made before is not missed."""
        for host in self._hosts.values():
            folder = _NETNS / f"{self._name}-{host.name}"
            (folder / "resolv.conf").unlink(missing_ok=True)
            if folder.is_dir():
                folder.rmdir()
            subprocess.run(["ip", "netns", "del", f"{self._name}-{host.name}"], capture_output=True, check=False)
        subprocess.run(["iptables", "-D", *self._pass], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)


def missing() -> str | None:
    """Returns in one line why no hosts can be made here; None if they can."""
    try:
        switch = Switch()
    except OSError as error:
        return f"hosts need root and the programs ip and iptables: {error}"
    try:
        switch.add("probe")
    except OSError as error:
        return f"hosts need network namespaces: {error}"
    finally:
        switch.close()
    return None


def run(*argv: str) -> None:
    """Runs a command.

    Raises:
        OSError: it fails, or is not installed.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError as error:
        raise OSError(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
