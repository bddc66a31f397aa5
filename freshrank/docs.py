"""Writes the generated parts of the documents anew from the code: `python -m freshrank.docs`; `--check` only compares.

A generated part stands between two comment lines that name it; everything else in the files is written by hand.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from freshrank import reference

ROOT = reference.ROOT


class Part(NamedTuple):
    """One generated part: the file and name it stands under, and what writes it."""

    file: str
    name: str
    write: Callable[[], str]


PARTS = (
    Part("docs/configuration.md", "settings", reference.settings),
    Part("docs/configuration.md", "environment", reference.environment),
    Part("docs/events.md", "event fields", reference.event_fields),
    Part("docs/http.md", "endpoints", reference.endpoints),
    Part("docs/http.md", "http fields", reference.http_fields),
    Part("docs/metrics.md", "metrics", reference.metrics),
    Part("docs/cli.md", "exit codes", reference.exit_codes),
    Part("docs/cli.md", "commands", reference.commands),
    Part("README.md", "figures", reference.figures),
    Part("README.md", "tree", reference.tree),
    Part("benchmarks/README.md", "join peers", reference.join_peers),
)


def insert(text: str, name: str, part: str) -> str:
    r"""Returns a document with the named part replaced.

    >>> insert("<!-- generated: x -->\nold\n<!-- end: x -->", "x", "new")
    '<!-- generated: x -->\nnew\n<!-- end: x -->'

    Raises:
        ValueError: the document has no place for it, or several.
    """
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{name}: the document must hold the lines {begin.strip()} and {end}, once each")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{part.strip()}\n{end}{after}"


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Returns, for each document that is not what the code says, what it should be."""
    texts = {file: (root / file).read_text(encoding="utf-8") for file in dict.fromkeys(part.file for part in PARTS)}
    fresh = dict(texts)
    for part in PARTS:
        fresh[part.file] = insert(fresh[part.file], part.name, part.write())
    return {root / file: fresh[file] for file in texts if fresh[file] != texts[file]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes, or with `--check` compares, the generated parts. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m freshrank.docs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a document is out of date")
    check = parser.parse_args(arguments).check
    outdated = stale()
    for path, text in outdated.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not what the code says; run `make docs`", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
