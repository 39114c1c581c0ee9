"""Running on a chosen CPU: a measurement that migrates measures the migration."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Session(Protocol):
    """Loops that several threads run together."""

    def work(self, index: int) -> None:
        """Run all of it as thread ``index``."""

    def stop(self) -> None:
        """Make every work() return soon."""


def run_pinned(session: Session, cpus: Sequence[int]) -> None:
    """
    Run a session, a thread on each CPU; no thread of it is left when this returns or raises.

    :param session: the compiled loops.
    :param cpus: one host CPU for each thread.
    :raises OSError: a CPU is not allowed.
    :raises MemoryError: an allocator ran out.
    """
    failures: list[BaseException] = []
    ready = threading.Barrier(len(cpus))

    def work(index: int, cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            ready.wait()
            session.work(index)
        except BaseException as why:        # handed to the caller
            ready.abort()
            failures.append(why)

    threads = [
        threading.Thread(target=work, args=each, name=f"bench-{each[0]}")
        for each in enumerate(cpus)
    ]
    try:
        for thread in threads:
            thread.start()
    finally:
        try:
            for thread in threads:
                thread.join()
        except BaseException:               # interrupted: the loops must end before we may
            session.stop()
            for thread in threads:
                thread.join()
            raise
    real = [why for why in failures if not isinstance(why, threading.BrokenBarrierError)]
    if real:
        raise real[0]


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
