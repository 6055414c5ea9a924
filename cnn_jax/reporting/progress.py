"""Progress and tables in the terminal; plain lines where there is none (a file, a pipe, a batch system)."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

from .formats import format_column, format_number


class Progress:
    """A progress bar with any numbers, images/s and time left.

        with Progress(total_steps, unit_images=batch_size) as progress:
            progress.update(step, {"loss": 0.31, "accuracy": 0.92})
            progress.line("epoch 1: test accuracy 0.97")

    total_steps: the step at which it is full.
    unit_images: images a step; 0 shows steps/s instead.
    start: the step it starts from, after a resume; speed and time left count from there.
    every: without a terminal, one plain line each so many steps; by default twenty lines in all. Never a bar.
    file: where to write; `sys.stdout` by default.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        unit_images: int = 0,
        start: int = 0,
        description: str = "training",
        every: int | None = None,
        file=None,
    ):
        self.total, self.step, self.description = int(total_steps), int(start), description
        self._images, self._unit = unit_images or 1, "images/s" if unit_images else "steps/s"
        self._every = every or max(1, -(-(self.total - self.step) // 20))
        self._file = sys.stdout if file is None else file
        # (time, step) of the last reports, at most about half a minute's. The first is taken at the first update: what
        # came before is compilation, not speed.
        self._marks: deque[tuple[float, int]] = deque(maxlen=2000)
        self._bar = self._task = None

    def __enter__(self):
        console = _console(self._file)
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = _rich_bar(console)
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.step, numbers="", speed="", left=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_error) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def rate(self) -> float:
        """Images (or steps) a second over the last half minute; NaN before the second update."""
        if len(self._marks) < 2:
            return float("nan")
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (s1 - s0) * self._images / max(t1 - t0, 1e-9)

    def update(self, step: int, values: Mapping | None = None) -> None:
        """Tells that `step` steps are done, with the numbers to show beside the bar."""
        previous, self.step = self.step, int(step)
        now = time.monotonic()
        self._marks.append((now, self.step))
        while len(self._marks) > 2 and now - self._marks[0][0] > 30:
            self._marks.popleft()
        rate = self.rate
        speed = "" if rate != rate else f"{format_number(round(rate) if rate >= 10 else rate)} {self._unit}"
        left = "" if rate != rate or not rate else _duration((self.total - self.step) * self._images / rate)
        numbers = "  ".join(f"{name} {format_number(value)}" for name, value in (values or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.step, numbers=numbers, speed=speed, left=left)
        elif self.step // self._every > previous // self._every or self.step == self.total > previous:
            parts = [f"{self.description} {self.step:,}/{self.total:,}", numbers, speed, left and f"{left} left"]
            self.line("  ".join(part for part in parts if part))

    def line(self, text: str = "") -> None:
        """Writes a message: above the bar, or as a line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _print(text, self._file)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence], *, file=None) -> None:
    """Prints a table of text and numbers, numbers flush right. Where there is no terminal it is as wide as it needs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    file = sys.stdout if file is None else file
    console = _console(file)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = [format_column(cells) for cells in zip(*rows, strict=True)] if rows else [([], False)] * len(header)
    for name, (_, numeric) in zip(header, columns, strict=True):
        table.add_column(Text(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row in zip(*(texts for texts, _ in columns), strict=True):
        table.add_row(*map(Text, row))
    if console.is_terminal:
        console.print(Text(title, style="bold"))
        console.print(table)
        return
    console.width = 10_000
    with console.capture() as capture:
        console.print(table)
    lines = [title, *(line.rstrip() for line in capture.get().splitlines() if line.strip())]
    _print("\n".join(lines), file)


def _console(file):
    from rich.console import Console

    return Console(file=file, highlight=False)


def _print(text: str, file) -> None:
    encoding = getattr(file, "encoding", None) or "utf-8"
    # An ASCII terminal gets "?" for what it lacks rather than an exception in the midst of a run.
    print(text.encode(encoding, "replace").decode(encoding), file=file, flush=True)


def _rich_bar(console):
    """Rich's bar, which takes the room that the texts leave; a narrow terminal goes without the name and the speed."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    def text(template: str, style: str = "", **column):
        return TextColumn(template, style=style, markup=False, table_column=Column(no_wrap=True, **column))

    narrow = console.width < 72
    return Progress(
        *([] if narrow else [text("{task.description}")]),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
        text("{task.completed:,.0f}/{task.total:,.0f}", justify="right"),
        text("{task.fields[numbers]}", "bold"),
        *([] if narrow else [text("{task.fields[speed]}", "cyan", justify="right")]),
        text("{task.fields[left]}", "green", justify="right"),
        console=console,
        expand=True,
        refresh_per_second=5,
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
