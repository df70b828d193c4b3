"""Prints tables to stdout: as wide as the terminal, or 100 columns of plain text without a terminal."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# Columns of text without a terminal. The default of rich is 80.
_PLAIN_WIDTH = 100


@contextlib.contextmanager
def buffered_console() -> Iterator[Console]:
    """Returns a console that writes its text to stdout after the block, without trailing spaces."""
    # Names come from the user's data, so `[b]` in the name of a class must not be markup.
    console = Console(
        width=None if sys.stdout.isatty() else _PLAIN_WIDTH, markup=False, emoji=False, highlight=False, soft_wrap=False
    )
    with console.capture() as capture:
        yield console
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    # A character that the terminal cannot encode is replaced instead of raising.
    sys.stdout.write(text.encode(console.encoding, "replace").decode(console.encoding))


def table_fits(console: Console, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> bool:
    """Returns whether `print_table` prints a table without breaking a cell or the name of a column into lines."""
    widths = (max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True))
    # A column has a space on each side, and one between it and the next column.
    return sum(width + 3 for width in widths) - 1 <= console.width


def print_table(console: Console, title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a title and a table: the first column is aligned left, the others right. Without rows, only the title."""
    rows = list(rows)
    console.print()
    console.print(title, style="bold")
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=True)
    for position, name in enumerate(columns):
        table.add_column(name, justify="right" if position and name else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
