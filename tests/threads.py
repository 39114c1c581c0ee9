"""Several threads at the same work."""

from __future__ import annotations

import threading
from collections.abc import Callable


def storm(work: Callable[[int], object], threads: int = 2) -> None:
    """Run ``work(0)`` ... ``work(threads - 1)`` at once; raise what the first that failed did."""
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
