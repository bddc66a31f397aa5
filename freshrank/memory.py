"""Resident memory of a tree of processes, from /proc; None on systems that have none."""

from pathlib import Path

PROC = Path("/proc")


def resident_bytes(root_pid: int, proc: Path = PROC) -> int | None:
    """Returns the sum of the resident sets of a process and all its descendants; shared pages count in each.

    None where there is no /proc. A process that ends while we look is left out.
    """
    if not (proc / str(root_pid)).exists():
        return None
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "status").read_text()
        except OSError:  # it has just ended
            continue
        found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        pid = int(folder.name)
        parents[pid] = int(found["PPid"])
        resident[pid] = int(found.get("VmRSS", "0 kB").split()[0]) * 1_024  # kernel threads have none
    return sum(size for pid, size in resident.items() if is_descendant(pid, root_pid, parents))


def is_descendant(pid: int, root_pid: int, parents: dict[int, int]) -> bool:
    """Tells whether `pid` is `root_pid` or below it."""
    while pid != root_pid and pid in parents:
        pid = parents[pid]
    return pid == root_pid
