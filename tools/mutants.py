"""
Break the page allocator on purpose and see that its tests notice.

    .venv/bin/python tools/mutants.py [--only NAME]... [--fast] [--list] [--json]

Each mutant is one textual change to a source under cython/realmem.  The module is compiled
apart from the build tree and put into a copy of the package; there the allocator's tests run in
a child process, which must fail, die or hang.  The unchanged sources are run first and must
pass.  Takes some seconds of one CPU a mutant.  Exits 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CYTHON = ROOT / "cython"
TESTS = (
    "tests/test_page_alloc_model.py::test_some_operations",
    "tests/test_page_alloc_model.py::test_a_node_that_ends_within_a_block",
    "tests/test_page_alloc_model.py::test_changing_marks_midway",
    "tests/test_fast_path_memos.py",
    "tests/test_page_alloc_memo.py",
    "tests/test_buddy.py",
    "tests/test_pcp.py",
    "tests/test_rmqueue_order.py",
    "tests/page_alloc",
    "tests/test_watermark_machine.py",
    "tests/test_gfp.py",
    "tests/test_highatomic.py",
    "tests/test_machine_options.py::test_odd_shapes",
    "tests/test_page_alloc_model.py::test_two_threads",
    "tests/test_fast_path_memos.py",
    "tests/test_page_alloc_memo.py",
)
# A mutant that takes this many times as long as the unchanged allocator hangs.
PATIENCE = 4
# The editable install's finder would find the unchanged modules first.
CHILD = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__]
sys.path.insert(0, {overlay!r})
import realmem
assert realmem.__file__.startswith({overlay!r}), realmem.__file__
import pytest
sys.exit(pytest.main({args!r}))
"""


@dataclass(frozen=True)
class Mutant:
    """
    One change.

    :ivar name: what is broken.
    :ivar file: source, below cython/realmem.
    :ivar old: text that stands there once.
    :ivar new: what takes its place.
    :ivar modules: what has to be compiled, if not the source itself.
    """

    name: str
    file: str
    old: str
    new: str
    modules: tuple[str, ...] = ()


_B, _P, _A, _F, _C = (f"_kernel/{name}.pyx" for name in
                      ("buddy", "pcp", "page_alloc", "page_free", "percpu"))
MUTANTS = (
    Mutant("wrong buddy", _B, "buddy_pfn = pfn ^ (<uint64_t>1 << order)\n        buddy =",
           "buddy_pfn = pfn + (<uint64_t>1 << order)\n        buddy ="),
    Mutant("merge stops an order early", _B,
           "    while order < MAX_PAGE_ORDER:\n        buddy_pfn",
           "    while order < MAX_PAGE_ORDER - 1:\n        buddy_pfn"),
    Mutant("merge skipped for orders 3", _B, "or not is_free_block(buddy, order):",
           "or order == 3 or not is_free_block(buddy, order):"),
    Mutant("merge across the zone's end", _B, "buddy_pfn < z.start_pfn or buddy_pfn >= end or not",
           "not"),
    Mutant("merge with a buddy of any order", _B,
           "return (p.kind.word & 0xFFFF) == (PAGE_BUDDY | order << 8)",
           "return p.kind.h.state == PAGE_BUDDY"),
    Mutant("nr_free not counted up", _B, "    area.nr_free[migratetype] += 1\n", ""),
    Mutant("nr_free not counted down", _B, "    area.nr_free[migratetype] -= 1\n", ""),
    Mutant("free_pages not decremented", _B,
           "    expand(z, p, order, found, migratetype)\n"
           "    z.free_pages -= <int64_t>1 << order\n",
           "    expand(z, p, order, found, migratetype)\n"),
    Mutant("free_pages not incremented", _B,
           "    z.free_pages += <int64_t>1 << order\n    while order",
           "    z.free_pages += 1\n    while order"),
    Mutant("free_pages lost in a stolen block", _B,
           "        expand(z, p, order, current, block_type)\n"
           "        z.free_pages -= <int64_t>1 << order\n",
           "        expand(z, p, order, current, block_type)\n"),
    Mutant("mask not cleared", _B, "        z.area_mask[migratetype] &= ~(<uint32_t>1 << order)\n",
           "        pass\n"),
    Mutant("mask not set", _B, "    z.area_mask[migratetype] |= <uint32_t>1 << order\n",
           "    z.area_mask[migratetype] |= <uint32_t>1 << (order & 7)\n"),
    Mutant("expand gives the wrong half back", _B,
           "add_to_free_list(z, p + (<uint64_t>1 << high), high, migratetype, False)",
           "add_to_free_list(z, p, high, migratetype, False)"),
    Mutant("expand loses the last half", _B, "    while high > low:\n        high -= 1",
           "    while high > low + 1:\n        high -= 1"),
    Mutant("migratetype of a block lost", _B,
           "p.kind.word = PAGE_BUDDY | order << 8 | <uint32_t>migratetype << 16",
           "p.kind.word = PAGE_BUDDY | order << 8 | <uint32_t>MIGRATE_MOVABLE << 16"),
    Mutant("claimed pageblock keeps its type", _B,
           "        change_pageblock_range(z, pfn, current, start_type)\n", ""),
    Mutant("moved blocks keep their type", _B,
           "        add_to_free_list(z, p, order, new_type, True)",
           "        add_to_free_list(z, p, order, MIGRATE_MOVABLE, True)"),
    Mutant("unmovable falls back to movable first", _B,
           "first, second = MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE",
           "first, second = MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE"),
    Mutant("claims the smallest block", _B, "    cdef int current = MAX_PAGE_ORDER\n",
           "    cdef int current = 5\n"),
    Mutant("watermark off by one", _B,
           "if free <= least + <int64_t>z.lowmem_reserve[highest_zone]:",
           "if free < least + <int64_t>z.lowmem_reserve[highest_zone]:"),
    Mutant("watermark ignores the order", _B, "    free -= (<int64_t>1 << order) - 1\n", ""),
    Mutant("lowmem_reserve ignored", _B,
           "if free <= least + <int64_t>z.lowmem_reserve[highest_zone]:", "if free <= least:"),
    Mutant("HIGH gets no reserve", _B,
           "            least -= least / 2\n            if alloc_flags",
           "            if alloc_flags"),
    Mutant("high-atomic counter lost", _B,
           "        z.nr_reserved_highatomic += PAGEBLOCK_NR_PAGES\n", "        pass\n"),
    Mutant("boot memory one page short", _B,
           "    cdef uint64_t pfn = start_pfn\n    cdef unsigned",
           "    cdef uint64_t pfn = start_pfn + 1\n    cdef unsigned"),
    Mutant("boot blocks overlap", _B, "        while pfn + (<uint64_t>1 << order) > end_pfn:",
           "        while pfn + (<uint64_t>1 << order) > end_pfn + 1:"),
    Mutant("per-CPU count lost at allocation", _P,
           "    pcp.count -= 1 << order\n    pcp.free_count",
           "    pcp.free_count"),
    Mutant("per-CPU count lost at refill", _P, "alloc_flags) << order\n", "alloc_flags)\n"),
    Mutant("a run longer than asked for", _B, "order_ret[0] += min(most, ctz(mask))",
           "order_ret[0] += ctz(mask)"),
    Mutant("a run of the wrong list", _B,
           "mask = z.area_mask[migratetype] >> order\n    order_ret",
           "mask = z.area_mask[MIGRATE_MOVABLE] >> order\n    order_ret"),
    Mutant("a run listed page by page", _P, "            p += <uint64_t>1 << order\n",
           "            p += 1\n"),
    Mutant("a run counted once", _P, "left -= 1 << (run_order - order)", "left -= 1"),
    Mutant("bulk free loses count", _P, "            pcp.count -= 1 << order\n            count",
           "            pcp.count -= 1\n            count"),
    Mutant("bulk free duplicates", _P, "            list_del(&p.lru)\n            pcp.count",
           "            pcp.count"),
    Mutant("refill of one block only", _P, "        batch = max(batch >> order, 2)",
           "        batch = 1"),
    Mutant("list of another order", "_kernel/pcp.pxd", "return migratetype + 3 * <int>order",
           "return migratetype + 2 * <int>order",
           ("pcp", "page_alloc", "page_free", "validate")),
    Mutant("refcount not reset", _F, "        p.counts.word = COUNTS_FREE\n        return True",
           "        return True"),
    Mutant("refcount of a new page", _A, "    p.counts.word = COUNTS_NEW\n    p.kind.word",
           "    p.kind.word"),
    Mutant("a reference too many frees", _F,
           "return atomic_add_return(&p.counts.c.refcount, -1, SEQ_CST) == 0",
           "return atomic_add_return(&p.counts.c.refcount, -1, SEQ_CST) <= 1"),
    Mutant("tails of a referenced block lost", _F,
           "            tail = p + (<uint64_t>1 << order)\n", "            tail = p + 1\n"),
    Mutant("pgfree counts blocks", _F, "area.events[PGFREE] += <uint64_t>1 << order",
           "area.events[PGFREE] += 1"),
    Mutant("wrong order accepted", _F, "if unlikely(p.kind.h.order != order):",
           "if unlikely(p.kind.h.order > order):"),
    Mutant("double free of a listed page", _F, "if state == PAGE_BUDDY or state == PAGE_PCP:",
           "if state == PAGE_PCP:"),
    Mutant("NUMA miss on the wrong node", _A, "        stat[NUMA_MISS] += n\n",
           "        area.pcp[preferred.index].numa[NUMA_MISS] += n\n"),
    Mutant("local node of the wrong zone", _A, "    if likely(z.nid == area.nid):",
           "    if likely(preferred.nid == area.nid):"),
    Mutant("THISNODE ignored", _A,
           "((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]\n    if (pcp",
           "0) * MAX_NR_ZONES + highest]\n    if (pcp"),
    Mutant("bulk ignores THISNODE", _A,
           "((gfp & GFP_THISNODE) != 0)) * MAX_NR_ZONES + highest]\n    while",
           "0) * MAX_NR_ZONES + highest]\n    while"),
    Mutant("highest zone off by one", _A, "<uint32_t>0xa9b2a9a2 >>", "<uint32_t>0xa9b2a9a6 >>"),
    Mutant("movable zone for everybody", _A, "<uint32_t>0xa9b2a9a2 >>",
           "<uint32_t>0xa9b2a9a3 >>"),
    Mutant("slow path at the low mark", _A, "cdef unsigned int flags = ALLOC_WMARK_MIN",
           "cdef unsigned int flags = ALLOC_WMARK_LOW"),
    Mutant("NOMEMALLOC does not override", _A,
           "if gfp & GFP_MEMALLOC and not gfp & GFP_NOMEMALLOC:",
           "if gfp & GFP_MEMALLOC:"),
    Mutant("no drain before giving up", _A, "        drain_all_pages(m)\n", ""),
    Mutant("zero only the first page", _A, "0, <uint64_t>PAGE_SIZE << order)", "0, PAGE_SIZE)"),
    Mutant("compound tails point elsewhere", _A, "(head + i).index = <uint64_t>head",
           "(head + i).index = <uint64_t>(head + i)"),
    Mutant("poison check skipped", _A, "        if good and not is_poison(word):",
           "        if False:"),
    Mutant("poison checked on a flagged head only", _A, "or m.options & MACHINE_POISON):",
           "or p.flags & 1 << PG_poisoned):"),
    Mutant("poison laid on the first page only", _F,
           "PAGE_POISON, <uint64_t>PAGE_SIZE << order)", "PAGE_POISON, PAGE_SIZE)"),
    Mutant("drain forgets threads", _C,
           "        moved += drain_area(m, area)\n        area = area.next",
           "        moved += drain_area(m, area)\n        area = NULL"),
    Mutant("the fast path forgets to count", _A, "            served[0] += 1\n", ""),
    Mutant("the fast path leaves its page listed", _A,
           "            head.next = next\n            next.prev = head\n", ""),
    Mutant("the fast path loses pages at free", _F,
           "            pcp.count = count\n            pcp.free_count",
           "            pcp.free_count"),
    Mutant("the fast path forgets pgfree", _F, "            area.events[PGFREE] += pages\n", ""),
    Mutant("a memo serves other flags", _A,
           "and memo.request == (<uint64_t><uint32_t>nid << 32 | gfp)",
           "and memo.request >> 32 == <uint32_t>nid"),
    Mutant("a memo frees to any pageblock's list", _F,
           "and memo.types[<uint64_t>p >> TYPES_SHIFT] == <uint8_t>(block >> 32)",
           "and memo.types != NULL"),
    Mutant("a memo outlives its CPU", _C, "    forget_allocs(area)\n", ""),
    Mutant("a memo outlives its marks", _C, "            forget_memos(area)\n", ""),
    Mutant("an ended thread keeps its pages", _C, "    drain_area(m, area)\n    area_fold",
           "    area_fold"),
    Mutant("memo of another node's request", _A,
           "memo.request == (<uint64_t><uint32_t>nid << 32 | gfp)",
           "<uint32_t>memo.request == gfp"),
    Mutant("memo without the zone's mark", _A, "nr_free_highatomic >= memo.mark",
           "nr_free_highatomic >= 0"),
    Mutant("memo forgets a node's count", _A, "&pcp.served[z.nid == area.nid][order]",
           "&pcp.served[1][0]"),
    Mutant("free memo without the pageblock's type", _F,
           "memo.types[<uint64_t>p >> TYPES_SHIFT] == <uint8_t>(block >> 32)",
           "memo.types != NULL"),
    Mutant("free memo without the page's flags", _F, "p.flags == memo.flags and ", ""),
    Mutant("waiting block not in the mask", _B, "z.split_mask | <uint16_t>(1 << z.split_from)",
           "z.split_mask"),
    Mutant("a block waits that would go to the tail", _B,
           "(z.area_mask[migratetype] >> whole & 1 and buddy_merge_likely(z, p, pfn, whole))",
           "False"),
    Mutant("waiting block counted twice", _B,
           "        z.free_pages -= <int64_t>1 << z.split_order\n", ""),
    Mutant("an ended thread's counts are lost", _C, "    area_fold(m, area)\n", ""),
)
# For every day: one of each kind.
FAST = ("wrong buddy", "mask not cleared", "lowmem_reserve ignored", "THISNODE ignored",
        "per-CPU count lost at refill", "refcount not reset")


def mutate(mutant: Mutant, sources: Path = CYTHON) -> str:
    """Give the changed source; ValueError if the text does not stand there once."""
    text = (sources / "realmem" / mutant.file).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: stands {found} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def overlay(where: Path) -> Path:
    """Copy the package with its compiled modules to a folder, and the sources beside it."""
    package = where / "realmem"
    shutil.copytree(ROOT / "realmem", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CYTHON, where / "cython")
    for source in sorted((CYTHON / "realmem").rglob("*.pyx")):
        name = ".".join(source.relative_to(CYTHON).with_suffix("").parts)
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise FileNotFoundError(f"{name} is not built: make build")
        folder = package.joinpath(*name.split(".")[1:-1])
        shutil.copy2(spec.origin, folder / Path(spec.origin).name)
    return where


def compile_module(where: Path, module: str) -> None:
    """Compile one kernel-side module of an overlay in place."""
    source = where / "cython" / "realmem" / "_kernel" / f"{module}.pyx"
    out = where / f"{module}.c"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    # A new file: the old one may be mapped by a child that hangs.
    target = where / "realmem" / "_kernel" / f"{module}{suffix}"
    target.unlink(missing_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    for command in (
        [sys.executable, "-m", "cython", "-3", "-I", str(where / "cython"), str(source),
         "-o", str(out)],
        [*compiler, "-O1", "-shared", "-fPIC", "-w", "-std=gnu11", "-fno-strict-aliasing",
         "-ftls-model=initial-exec", "-DNDEBUG", "-I", sysconfig.get_paths()["include"],
         str(out), "-o", str(target)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{module} does not compile:\n{done.stdout}{done.stderr}")


def run_tests(where: Path, timeout: float | None = None) -> str | None:
    """Run the tests on an overlay; give what noticed, None when all passed."""
    args = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=line",
            "-o", "addopts=--import-mode=importlib", *TESTS]
    code = CHILD.format(overlay=str(where), args=args)
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env={**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    except subprocess.TimeoutExpired:
        return "it hangs"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"it dies of signal {-done.returncode}"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else f"exit status {done.returncode}: {done.stderr[-500:]}"


def judge(mutant: Mutant, where: Path, timeout: float) -> str | None:
    """Build a mutant in an overlay, test it, put the overlay right again."""
    source = where / "cython" / "realmem" / mutant.file
    modules = mutant.modules or (Path(mutant.file).stem,)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {module: where / "realmem" / "_kernel" / f"{module}{suffix}" for module in modules}
    before = source.read_text()
    kept = {module: path.read_bytes() for module, path in built.items()}
    try:
        source.write_text(mutate(mutant, where / "cython"))
        for module in modules:
            compile_module(where, module)
        return run_tests(where, timeout)
    finally:
        source.write_text(before)
        for module, path in built.items():
            path.unlink(missing_ok=True)
            path.write_bytes(kept[module])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; repeatable")
    parser.add_argument("--fast", action="store_true", help="one mutant of each kind")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--json", action="store_true", help="one object for all results")
    options = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if (not options.only or m.name in options.only)
              and (not options.fast or m.name in FAST)]
    if options.list or not chosen:
        print("\n".join(mutant.name for mutant in MUTANTS))
        return 0 if options.list else 2
    results = []
    with tempfile.TemporaryDirectory(prefix="realmem-mutants-") as folder:
        where = overlay(Path(folder))
        compile_module(where, "buddy")
        begin = time.monotonic()
        blame = run_tests(where)
        timeout = max(30.0, PATIENCE * (time.monotonic() - begin))
        if blame is not None:
            print(f"the unchanged allocator fails: {blame}", file=sys.stderr)
            return 1
        for mutant in chosen:
            begin = time.monotonic()
            noticed = judge(mutant, where, timeout)
            results.append({"mutant": mutant.name, "noticed": noticed})
            if not options.json:
                print(f"{'ok      ' if noticed else 'SURVIVED'} {mutant.name}: "
                      f"{noticed} ({time.monotonic() - begin:.0f} s)", flush=True)
    survivors = [result["mutant"] for result in results if not result["noticed"]]
    if options.json:
        print(json.dumps({"results": results, "survivors": survivors}, indent=1))
    else:
        print(f"{len(results) - len(survivors)} of {len(results)} mutants noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
