"""What a replay shows in the terminal: a progress bar with live figures, then a table."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from freshrank.replay import ReplayProgress


class ProgressView:
    """A progress bar on stderr with the windowed figures of the first task."""

    def __init__(self, tasks: list[str]) -> None:
        self._task_name = tasks[0]
        self._progress = Progress(
            TextColumn("replay"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("events"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._bar = self._progress.add_task("replay", total=None, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, progress: "ReplayProgress") -> None:
        """Shows how far it is."""
        figures = progress.window[self._task_name]["all"]
        text = f"{self._task_name}: AUC {number(figures['auc'])}  NE {number(figures['ne'])}"
        self._progress.update(self._bar, completed=progress.events, total=progress.total, figures=text)


def figures_table(result: dict[str, Any], out: TextIO) -> None:
    """Prints the figures of a replay per task and scenario."""
    table = Table("task", "scenario", *(_right(name) for name in ("labels", "positives", "AUC", "NE", "calibration")))
    for task, scenarios in result["tasks"].items():
        for scenario, figures in scenarios.items():
            counts = (f"{figures['n']:,}", f"{figures['positives']:,}")
            table.add_row(task, scenario, *counts, *(number(figures[name]) for name in ("auc", "ne", "calibration")))
    console = Console(file=out)
    console.print(table)
    join = result["join"]
    console.print(
        f"{result['examples']:,} examples in {result['steps']:,} steps, {result['snapshots']:,} snapshots; "
        f"{join['slates']:,} slates, {join['feedback']:,} feedback, {join['malformed']:,} malformed lines; "
        f"{result['timing']['wall_s']:.1f} s"
    )


def number(value: float | None) -> str:
    """Returns three decimals, or a dash for what is undefined."""
    return "-" if value is None else f"{value:.3f}"


def _right(name: str) -> Column:
    return Column(name, justify="right")
