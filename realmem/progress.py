"""A progress bar for people: drawn only on a terminal, and only for what takes a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Shorter work is over before a bar could be read.
_PATIENCE_SECONDS = 0.5

Progress = Callable[[int, int, int], None]


@contextmanager
def populating(sizes: list[int], given: Progress | None) -> Iterator[Progress | None]:
    """
    Give what Pool reports progress to: the caller's own, a bar on a terminal, or nothing.

    :param sizes: bytes of each node.
    :param given: the caller's callable, or None.
    """
    if given is not None or not sys.stderr.isatty():
        yield given
        return
    bar = _Bar(sizes)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    def __init__(self, sizes: list[int]) -> None:
        self._done = [0] * len(sizes)
        self._total = sum(sizes)
        self._start = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def update(self, node: int, done: int, total: int) -> None:
        self._done[node] = done
        if self._progress is None:
            if time.monotonic() - self._start < _PATIENCE_SECONDS:
                return
            self._open()
        self._progress.update(self._task, completed=sum(self._done))

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("populating"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=self._total)
        self._progress.start()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
