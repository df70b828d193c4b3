"""Prints tables: as wide as the terminal, plain and 100 columns wide where there is none."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# Columns where there is no terminal that says its own: rich would guess 80.
_PLAIN_WIDTH = 100


@contextlib.contextmanager
def buffered_console() -> Iterator[Console]:
    """A console whose text goes to stdout when the block ends, without trailing blanks."""
    # Names come from the user's data: `[b]` in a class is no mark-up.
    console = Console(
        width=None if sys.stdout.isatty() else _PLAIN_WIDTH, markup=False, emoji=False, highlight=False, soft_wrap=False
    )
    with console.capture() as capture:
        yield console
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    # A terminal that knows fewer characters than a class name has is no reason to fail.
    sys.stdout.write(text.encode(console.encoding, "replace").decode(console.encoding))


def print_table(console: Console, title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """A table under its title, its first column left and numbers right; the title alone where there are no rows."""
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
