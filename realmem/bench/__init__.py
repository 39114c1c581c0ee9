"""
Measuring real memory: latency, bandwidth, and what an allocation or a fault costs.

Results are plain dataclasses (:mod:`realmem.bench.results`) that keep every sample, with unit,
host facts and stamps; :func:`run` makes them, ``realmem bench`` shows them, and
:mod:`realmem.bench.registry` says how a bench is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from realmem.bench import facts, registry
from realmem.bench.compare import Comparison, compare
from realmem.bench.registry import Bench, Options
from realmem.bench.results import PeerResult, Result, Run

__all__ = ["Bench", "Comparison", "Options", "PeerResult", "Result", "Run", "compare", "run"]


def run(
    names: Sequence[str] = ("all",),
    options: Options | None = None,
    *,
    with_peers: bool = False,
    on_start: Callable[[int, int], None] | None = None,
) -> Run:
    """
    Run benches.

    :param names: of :func:`realmem.bench.registry.names`, or ``"all"``.
    :param options: what to measure on.
    :param with_peers: also run the peer programs of these benches, in turns with ours.
    :param on_start: called before each bench with (benches done, benches to do).
    :return: the figures with the host's facts, which are taken before anything runs.  A bench
        that the host refuses something keeps the figures it had, stands in ``failures``, and
        does not keep the next one from running.
    :raises KeyError: a name that is none of a bench.
    :raises TypeError: a name in place of a sequence of names.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, not {names!r}")
    options = options or Options()
    chosen = registry.names() if "all" in names else tuple(dict.fromkeys(names))
    jobs: list[tuple[str, Callable[[Options], Iterable[Result | PeerResult]]]]
    benches = [registry.get(name) for name in chosen]
    host = facts.host_facts()
    results: list[Result | PeerResult] = []
    failures: dict[str, str] = {}
    started = time.monotonic()
    jobs = [(bench.name, bench.run) for bench in benches]
    jobs += [(bench.name, bench.peers) for bench in benches if with_peers and bench.peers]
    for done, (name, job) in enumerate(jobs):
        if on_start:
            on_start(done, len(jobs))
        try:
            for result in job(options):     # one by one: what came before a failure is kept
                results.append(result)
        except (OSError, MemoryError) as why:
            reason = getattr(why, "strerror", None) or str(why) or type(why).__name__
            failures[name] = str(reason).splitlines()[0]
    return Run(
        host=host,
        options={
            "benches": list(chosen),
            "quick": options.quick,
            "pages": list(options.pages) if options.pages else None,
            "threads": options.threads,
            "seed": options.seed,
        },
        results=tuple(result for result in results if isinstance(result, Result)),
        peers=tuple(result for result in results if isinstance(result, PeerResult)),
        failures=failures,
        seconds=time.monotonic() - started,
    )
