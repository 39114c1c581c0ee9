"""
Which benches there are, and how one is written.

A bench is a module ``realmem/bench/NAME.py`` that defines ``BENCH``::

    from realmem.bench.registry import Bench, Options
    from realmem.bench.results import Result

    def run(options: Options) -> Iterator[Result]:
        for order in (0, 3, 9):
            options.progress(f"order {order}")
            yield Result("alloc", "alloc+free", "ns", samples, params={"order": order})

    BENCH = Bench("alloc", "Cost of a page allocation and its free", run)

and whose name stands in ``_MODULES`` below, which is the order ``all`` runs them in.  ``run`` is
a generator (or gives any iterable): what it has yielded is kept and shown even if a later figure
fails.  It honours ``options.quick`` (a few seconds at most; a few samples of each figure),
``options.pages`` and ``options.threads`` where they mean something, and restores the thread's
affinity (``realmem.bench.pin.pinned_to``).  Every varying thing goes into ``params``, since two
runs are compared figure by figure on (bench, metric, unit, nodes, params).

A bench that has a peer program adds ``peers=run_peers``, a function of the same options that
yields :class:`~realmem.bench.results.PeerResult`; it looks for the program in
``options.peers_dir``, and yields a result without samples (shown as ``not present``) when it is
not there.  It is called for ``--peers`` only.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from realmem.arguments import as_bool, as_callable, as_int
from realmem.bench.results import PeerResult, Result

PAGE_KINDS = ("4K", "2M", "1G")
_MODULES = ("latency", "bandwidth", "alloc", "objects", "fault", "pressure")


def _silent(what: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Options:
    """
    What the user asked for.

    :ivar quick: fewer sizes and samples; all benches together take well under a minute.
    :ivar pages: page kinds to measure on, of ``"4K"``, ``"2M"``, ``"1G"``; None means 4K, and
        2M where the host gives them.
    :ivar threads: how many threads at most; None means all CPUs of a node.
    :ivar seed: of every random choice.
    :ivar peers_dir: where peer programs lie, or None.
    :ivar progress: called with a few words before each figure.
    """

    quick: bool = False
    pages: tuple[str, ...] | None = None
    threads: int | None = None
    seed: int = 0
    peers_dir: Path | None = None
    progress: Callable[[str], None] = field(default=_silent, compare=False, repr=False)

    def __post_init__(self) -> None:
        as_bool(self.quick, "quick")
        as_int(self.seed, "seed", 0)
        as_callable(self.progress, "progress")
        if self.threads is not None:
            as_int(self.threads, "threads", 1)
        for kind in self.pages or ():
            if kind not in PAGE_KINDS:
                raise ValueError(f"no page size {kind!r}: one of {', '.join(PAGE_KINDS)}")


@dataclass(frozen=True)
class Bench:
    """
    One entry of ``realmem bench``.

    :ivar name: as on the command line.
    :ivar title: of its table.
    :ivar run: gives the results, one by one.
    :ivar peers: gives the results beside peer programs, or None.
    """

    name: str
    title: str
    run: Callable[[Options], Iterable[Result]]
    peers: Callable[[Options], Iterable[PeerResult]] | None = None


def names() -> tuple[str, ...]:
    """Give the names of the benches that exist, in the order ``all`` runs them in."""
    return tuple(
        name
        for name in _MODULES
        if importlib.util.find_spec(f"realmem.bench.{name}") is not None
    )


def get(name: str) -> Bench:
    """
    Load one bench.

    :raises KeyError: there is none of this name.
    """
    if name not in names():
        raise KeyError(name)
    bench = importlib.import_module(f"realmem.bench.{name}").BENCH
    assert isinstance(bench, Bench) and bench.name == name
    return bench
