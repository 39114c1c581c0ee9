"""
Bandwidth: how many bytes a second come and go when nothing waits for anything.

The kernels are STREAM's four, and a pure read and a pure write; bytes are counted as STREAM
counts them, so a store's read for ownership is not.  One thread, then all CPUs of the node,
each pinned, in step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from realmem._bench import stream
from realmem.bench import memory, peers
from realmem.bench.pin import pinned_to
from realmem.bench.places import places
from realmem.bench.registry import Bench, Options
from realmem.bench.results import PeerResult, Result

LEAST_LLC_BYTES = 16 << 20      # a virtual machine may show less cache than the host has

RETRIES = 2

KERNELS = ("read", "write", "copy", "scale", "add", "triad")


def run_gang(
    cpus: Sequence[int], address: int, elements: int, passes: int,
    kernels: Sequence[str] = KERNELS, retries: int = 0,
) -> dict[str, tuple[float, ...]]:
    """
    Run kernels over three arrays that lie one after the other, on some CPUs at once.

    :param cpus: one thread is pinned to each.
    :param address: of the first array.
    :param elements: doubles in each array.
    :param passes: how often; the first pass warms up and is dropped, so at least 2.
    :param kernels: names, run in this order in every pass.
    :param retries: how often a kernel is run again if another program came in between.
    :return: GB/s of each pass by kernel.
    :raises OSError: a thread could not be pinned.
    """
    threads = len(cpus)
    gang = stream.Gang(threads, [stream.KERNELS[name][0] for name in kernels], passes, retries)
    failed: list[BaseException] = []

    def member(rank: int) -> None:
        first = elements // threads * rank + min(rank, elements % threads)
        count = elements // threads + (rank < elements % threads)
        a, b, c = (address + 8 * (elements * k + first) for k in range(3))
        try:
            with pinned_to([cpus[rank]]):
                gang.work(rank, a, b, c, count)
        except BaseException as why:
            failed.append(why)
            gang.cancel()

    others = [threading.Thread(target=member, args=(rank,)) for rank in range(1, threads)]
    for thread in others:
        thread.start()
    member(0)
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
    return {
        name: tuple(stream.KERNELS[name][1] * elements / seconds / 1e9 for seconds in times[1:])
        for name, times in zip(kernels, gang.times(), strict=True)
    }


def run(options: Options) -> Iterator[Result]:
    """Give one result for each memory node, page kind, CPU node, thread count and kernel."""
    where = places()
    most_bytes = (2 if options.quick else 4) * max(where.llc_bytes, LEAST_LLC_BYTES)
    passes = 6 if options.quick else 21
    for memory_node in where.memory:
        for pages in options.pages or memory.default_pages():
            options.progress(f"bandwidth: taking {pages} memory on node {memory_node}")
            with memory.buffer(memory_node, 3 * most_bytes, pages, least=3 << 20) as area:
                array_bytes = area.size // 3 // 4096 * 4096
                elements = array_bytes // 8
                note = f"{pages}: {area.source}"
                if array_bytes < where.llc_bytes:
                    note += "; arrays smaller than the last cache, for want of memory"
                for cpu_node, cpus in where.cpus.items():
                    most = min(len(cpus), options.threads or len(cpus))
                    for threads in sorted({1, most}):
                        options.progress(
                            f"bandwidth {cpu_node}>{memory_node} {pages} threads {threads}"
                        )
                        rates = run_gang(
                            cpus[:threads], area.address, elements, passes, retries=RETRIES
                        )
                        for kernel, samples in rates.items():
                            yield Result(
                                "bandwidth",
                                kernel,
                                "GB/s",
                                samples,
                                cpu_node=cpu_node,
                                memory_node=memory_node,
                                params={
                                    "pages": pages,
                                    "threads": threads,
                                    "array_bytes": array_bytes,
                                },
                                stamps=area.stamps,
                                higher_is_better=True,
                                note=note,
                            )


def run_peers(options: Options) -> Iterator[PeerResult]:
    """Give one result beside each STREAM there is, for each thread count and kernel of it."""
    where = places()
    node = where.local
    programs = peers.find_all(options.peers_dir, "stream*")
    if not programs or node is None:
        yield PeerResult("bandwidth", "STREAM", "all", "GB/s")
        return
    cpus = where.cpus[node]
    most = min(len(cpus), options.threads or len(cpus))
    for path in programs:
        for threads in sorted({1, most}):
            options.progress(f"bandwidth beside {path.name}, threads {threads}")
            yield from _beside_stream(path, node, cpus[:threads], options.quick)


def _beside_stream(
    path: Path, node: int, cpus: Sequence[int], quick: bool
) -> Iterator[PeerResult]:
    env = {
        "OMP_NUM_THREADS": str(len(cpus)),
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
    }
    seen = [0]
    # Its arrays' size is compiled in, and so may be what they lie on: it has to be asked.
    like = peers.parse_stream(peers.run_program(
        [str(path)], cpus, env, lambda pid: seen.append(peers.anon_huge_bytes(pid))
    ))
    if like.threads != len(cpus):
        return                              # built without OpenMP
    array_bytes = 8 * like.elements
    pages = "2M" if max(seen) > 3 * array_bytes // 2 else "4K"

    def theirs() -> Mapping[str, float]:
        return peers.parse_stream(peers.run_program([str(path)], cpus, env)).rates

    def ours() -> Mapping[str, float]:
        with memory.buffer(node, 3 * array_bytes, pages) as area:
            rates = run_gang(cpus, area.address, like.elements, like.passes, tuple(like.rates))
        return {name: max(samples) for name, samples in rates.items()}

    pairs = peers.in_turns(3 if quick else 9, ours, theirs)
    for name in like.rates:
        yield PeerResult(
            "bandwidth",
            "STREAM",
            name,
            "GB/s",
            tuple(rates[name] for rates in pairs[0]),
            tuple(rates[name] for rates in pairs[1]),
            params={"pages": pages, "threads": len(cpus), "array_bytes": array_bytes},
            note="the best pass of each round, as it reports it",
        )


BENCH = Bench("bandwidth", "Memory bandwidth", run, run_peers)
