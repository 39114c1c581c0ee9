"""
Idle load latency: how long a load takes that nothing could fetch ahead.

A pointer chase over one random cycle through every line of a range, one line a stride, by one
pinned thread, for each CPU node and memory node.  The sweep over sizes shows the caches as
steps; the last size lies well beyond them.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from realmem._bench import chase
from realmem.bench import memory, peers
from realmem.bench.pin import pinned_to
from realmem.bench.places import places
from realmem.bench.registry import Bench, Options
from realmem.bench.results import PeerResult, Result
from realmem.host import limits
from realmem.host.sysfs import read_text

STRIDE_BYTES = 64
RETRIES = 4

_FIRST = 16 << 10


def sizes(llc_bytes: int, quick: bool) -> list[int]:
    """
    Choose the sizes of a sweep: powers of two from 16 KiB to well beyond the last cache.

    :param llc_bytes: size of the last cache.
    :param quick: every second power only.
    """
    last = max(256 << 20, 4 * llc_bytes)
    steps = range(_FIRST.bit_length() - 1, last.bit_length())
    return [1 << step for step in (steps[::-2][::-1] if quick else steps)]


def sample_chase(
    start: int, lines: int, sample_ns: int, count: int, retries: int = 0
) -> tuple[float, ...]:
    """
    Follow a cycle for a while, several times over, going on where the last sample ended.

    :param start: address of a line of the cycle.
    :param lines: of the cycle; it is followed once beforehand, as far as four samples would,
        so that what fits into a cache lies there.
    :param sample_ns: how long a sample should take.
    :param count: how many samples.
    :param retries: how often a sample is taken again if the kernel gave the CPU to another
        thread meanwhile: it measured that thread.
    :return: nanoseconds a load, one figure a sample.
    """
    loads, spent = 256, 0
    while spent < sample_ns // 4:
        loads *= 2
        spent, start = chase.chase(start, loads)
    loads = max(16, loads * sample_ns // spent // 16 * 16)
    _, start = chase.chase(start, min(lines, 4 * loads))
    samples = []
    for _ in range(count):
        for _attempt in range(retries + 1):
            before = _preemptions()
            spent, start = chase.chase(start, loads)
            if _preemptions() == before:
                break
        samples.append(spent / loads)
    return tuple(samples)


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def run(options: Options) -> Iterator[Result]:
    """Give one result for each memory node, page kind, size and CPU node."""
    where = places()
    sample_ns, count = (2_000_000, 15) if options.quick else (10_000_000, 51)
    sweep = sizes(where.llc_bytes, options.quick)
    for memory_node in where.memory:
        for pages in options.pages or memory.default_pages():
            options.progress(f"latency: taking {pages} memory on node {memory_node}")
            with memory.buffer(memory_node, sweep[-1], pages, least=sweep[-3]) as area:
                for size in sweep:
                    if size > area.size:
                        break
                    lines = chase.build(area.address, size, STRIDE_BYTES, options.seed)
                    for cpu_node, cpus in where.cpus.items():
                        options.progress(f"latency {cpu_node}>{memory_node} {pages} {size >> 10}K")
                        with pinned_to(cpus[:1]):
                            samples = sample_chase(area.address, lines, sample_ns, count, RETRIES)
                        yield Result(
                            "latency",
                            "load",
                            "ns",
                            samples,
                            cpu_node=cpu_node,
                            memory_node=memory_node,
                            params={
                                "pages": pages,
                                "size_bytes": size,
                                "stride_bytes": STRIDE_BYTES,
                            },
                            stamps=area.stamps,
                            note=f"{pages}: {area.source}",
                        )


PEER_SIZES = (16 << 10, 512 << 10, 8 << 20, 256 << 20)
PEER_SAMPLE_NS = 500_000_000        # multichase's own
PEER_SAMPLES = 2


def run_peers(options: Options) -> Iterator[PeerResult]:
    """Give one result beside multichase for each page kind and size."""
    path = peers.find(options.peers_dir, "multichase")
    where = places()
    node = where.local
    if path is None or node is None:
        yield PeerResult("latency", "multichase", "load", "ns")
        return
    cpus = where.cpus[node]
    for pages in memory.default_pages():
        if pages == "2M" and not _takes_huge_pages():
            yield PeerResult(
                "latency", "multichase", "load", "ns", params={"pages": pages},
                note="not run with -H, which would change this host's transparent_hugepage",
            )
            continue
        for size in PEER_SIZES:
            options.progress(f"latency beside multichase, {pages} {size >> 10}K")
            ours, theirs = peers.in_turns(
                2 if options.quick else 7,
                partial(_one_figure, node, cpus[:1], pages, size, options.seed),
                partial(_multichase, path, cpus, pages, size),
            )
            yield PeerResult(
                "latency",
                "multichase",
                "load",
                "ns",
                ours,
                theirs,
                params={"pages": pages, "size_bytes": size, "stride_bytes": STRIDE_BYTES},
                note=f"the best of {PEER_SAMPLES} samples of 0.5 s a round, one cycle through all "
                "lines (-T SIZE)",
            )


def _one_figure(node: int, cpus: Sequence[int], pages: str, size: int, seed: int) -> float:
    """Do as multichase does: fresh memory, one sample to warm up, the best of the others."""
    with memory.buffer(node, size, pages) as area, pinned_to(cpus):
        lines = chase.build(area.address, size, STRIDE_BYTES, seed)
        return min(sample_chase(area.address, lines, PEER_SAMPLE_NS, PEER_SAMPLES + 1)[1:])


def _takes_huge_pages() -> bool:
    """Tell whether multichase -H leaves the host's settings alone: it writes what it dislikes."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    chosen = {name: limits.choice(read_text(folder / name)) for name in ("enabled", "defrag")}
    return chosen["enabled"] in ("always", "madvise") and chosen["defrag"] in (
        "always", "madvise", "defer+madvise"
    )


def _multichase(path: Path, cpus: Sequence[int], pages: str, size: int) -> float:
    # It pins its chasing thread to the first of the CPUs; the one that waits may use the others.
    argv = [str(path), "-m", str(size), "-T", str(size), "-s", str(STRIDE_BYTES),
            "-n", str(PEER_SAMPLES), *(["-H"] if pages == "2M" else [])]
    return peers.parse_multichase(peers.run_program(argv, cpus))


BENCH = Bench("latency", "Idle load latency", run, run_peers)
