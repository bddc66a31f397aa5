"""A virtual environment per peer in `benchmarks/.peers`: their dependencies contradict ours and each other's."""

import subprocess
import sys
import venv
from pathlib import Path

PINS = Path(__file__).parent
FOLDER = PINS.parent / ".peers"
INSTALL_LIMIT_S = 600.0


class NotRunError(Exception):
    """A peer cannot be measured here; the text says why, as a row of the table does."""


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """Returns the interpreter that has the peer installed in exactly the pinned versions.

    Raises:
        NotRunError: it is not installed, or others are.
    """
    python, installed = folder / name / "bin" / "python", folder / name / "installed.txt"
    if not python.exists() or not installed.exists():
        raise NotRunError("not installed; `python -m benchmarks.join_peers --install` does it")
    if installed.read_text(encoding="utf-8") != _pins(name):
        raise NotRunError("installed in other versions; `python -m benchmarks.join_peers --install` makes it anew")
    return python


def install(name: str, folder: Path = FOLDER) -> None:
    """Makes the peer's environment, unless it is there.

    Raises:
        NotRunError: pip failed, or took longer than ten minutes.
    """
    try:
        python_of(name, folder)
    except NotRunError:
        place = folder / name
        venv.create(place, with_pip=True, clear=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            done = subprocess.run(
                [*pip, "-r", str(PINS / f"{name}.txt")],
                stderr=subprocess.PIPE, text=True, timeout=INSTALL_LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NotRunError(f"not installed within {INSTALL_LIMIT_S:g} s") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotRunError(f"not installed: {last}") from None
        (place / "installed.txt").write_text(_pins(name), encoding="utf-8")


def interpreter(name: str | None) -> Path:
    """Returns the interpreter of a peer; without a name this one, for ours."""
    return Path(sys.executable) if name is None else python_of(name)


def version(name: str, package: str) -> str:
    """Returns the pinned version of a package of a peer."""
    return next(line.partition("==")[2] for line in _pins(name).splitlines() if line.partition("==")[0] == package)


def _pins(name: str) -> str:
    return (PINS / f"{name}.txt").read_text(encoding="utf-8")
