"""Running on a chosen CPU: a measurement that migrates measures the migration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def pinned_to(cpus: Iterable[int]) -> Iterator[None]:
    """
    Pin the calling thread, and restore its affinity afterwards.

    :param cpus: host CPU numbers.
    :raises OSError: none of them is allowed here.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
