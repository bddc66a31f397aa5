"""A row of a file that somebody else wrote: cells by column, and errors that say where it stands."""

import math


class TableRow(dict[str, str]):
    """One row of a file, by column."""

    def __init__(self, cells: dict[str, str], place: str) -> None:
        """`place` is what errors begin with: the file and the line."""
        super().__init__(cells)
        self._place = place

    def number(self, column: str) -> float:
        """Returns a cell as a finite number.

        Raises:
            ValueError: it is none; names file, line and column.
        """
        try:
            value = float(self[column])
        except (ValueError, TypeError) as error:
            raise self.error(column, "a number") from error
        if not math.isfinite(value):
            raise self.error(column, "a finite number")
        return value

    def error(self, column: str, allowed: str) -> ValueError:
        """Returns the error for a cell that is not what it should be."""
        return ValueError(f"{self._place}: {column}: {self[column]!r} is not {allowed}")
