"""Mutants of runs of frames: what faults reserve, the host maps at once, pressure takes back."""

from __future__ import annotations

from mutation import Mutant, Suite

_R, _H, _M, _B, _P, _E, _T, _F, _U = (
    f"_kernel/{name}.pyx"
    for name in ("run", "run_host", "mm_run", "buddy", "page_alloc", "edges", "tlb", "page_free",
                 "run_uffd")
)
RUNS = Suite(
    tests=("tests/test_runs.py", "tests/fault/test_runs.py", "tests/fault/test_userfaultfd.py",
           "tests/fault/test_raw_access.py"),
    mutants=(
        # ---- run.pyx
        Mutant("a frame of a run is given out twice", _R,
               "        set_used(run, i, order)\n", ""),
        Mutant("a frame that a run gave out counts as free", _R,
               "        z.free_pages -= n\n        z.run_pages -= n\n",
               "        z.run_pages -= n\n"),
        Mutant("a run that was taken back serves on", _R, "    run.unused = 0\n    while next",
               "    while next"),
        Mutant("taking back frees what is in use", _R,
               "    while i < RUN_PAGES and run_bit(run.used, i):\n        i += 1\n", ""),
        Mutant("taking back counts frames twice", _R,
               "        z.free_pages -= <int64_t>1 << order     # it counted as free already\n",
               ""),
        Mutant("a run's end keeps its frames", _R,
               "    if run.unused > 0:\n        take_back(z, run)\n    put_record(run)",
               "    put_record(run)"),
        Mutant("reserving hides free pages", _R, "        z.free_pages += RUN_PAGES\n", ""),
        Mutant("a nearly full zone is cut into runs", _R,
               "(z.managed_pages >> ROOM_SHIFT)", "0"),
        Mutant("free lists forget what runs have left", _R,
               "counts_ref[order][z.pageblock[(run.pfn >> PAGEBLOCK_ORDER)"
               " - z.pageblock_start]] += 1", "pass"),
        # ---- buddy.pyx, page_alloc.pyx
        Mutant("the buddy never takes a run back", _B,
               "    while unlikely(p == NULL and z.runs != NULL):\n"
               "        take_back_run(z, z.runs)\n"
               "        p = rmqueue_lists(z, order, migratetype, alloc_flags)\n", ""),
        Mutant("tests for large blocks do not see runs", _P,
               "    if unlikely(z.runs != NULL) and order > 0:\n        take_back_for(z, order)\n",
               ""),
        Mutant("a run's frame is no local hit", _P,
               "        zone_statistics(area, z, z, 1)\n        area.pcp[z.index].pgalloc += 1 <<",
               "        area.pcp[z.index].pgalloc += 1 <<"),
        Mutant("a run's frame was not allocated", _P,
               "        area.pcp[z.index].pgalloc += 1 << order\n        if unlikely(not prep",
               "        if unlikely(not prep"),
        # ---- run_host.pyx, tlb.pyx, edges.pyx, mm_run.pyx
        Mutant("no chunk is ever mapped", _H, "    used = popcount(run.used[chunk])\n",
               "    return False\n"),
        Mutant("a chunk replaces other frames", _H,
               "        if pte_host(pte[i]) != HOST_NONE and pte_pfn(pte[i]) != pfn + i:\n"
               "            return\n", "        pass\n"),
        Mutant("a chunk closes what was open", _H, "        reopen(mm, start, pte)\n", ""),
        Mutant("a chunk's edges are not counted", _H,
               "    add_edges(mm, edges_in(mm, start, start + CHUNK_SIZE) - before)\n", ""),
        Mutant("a page that was replaced is still a run's", _H,
               "            run.mapped[i >> 6] &= ~(<uint64_t>1 << (i & 63))\n",
               "            pass\n"),
        Mutant("edges see only what entries say", "_kernel/edges.pxd",
               "    if run == NULL or not run_bit(run.mapped, i):\n", "    if True:\n",
               modules=("edges",)),
        Mutant("a flush leaves runs mapped", _T,
               "                forget_mapped(mm.mmu.m, pte, n)\n", "                pass\n"),
        Mutant("a page table goes before its run", _M,
               "            run_end(run)\n", ""),
        Mutant("a run is mapped over another VMA's memory", _M,
               " or base < vma.vm_start or base + PMD_SIZE > vma.vm_end:", ":"),
        # ---- run_uffd.pyx
        Mutant("no run is ever registered", _U,
               "    if uffd_register(u.uffd, at, PMD_SIZE) == 0:\n", "    if False:\n"),
        Mutant("what was open by userfaultfd is closed unnoticed", _U,
               "    reopen(u, at, pte, run)\n", ""),
        Mutant("other frames' entries open a run's", _U,
               " or pte_pfn(pte[i]) != run.pfn + i or host == HOST_NOACC:",
               " or host == HOST_NOACC:"),
        Mutant("a read by userfaultfd may write", _U,
               "    return uffd_continue(u.uffd, at, length, host == HOST_READ)\n",
               "    return uffd_continue(u.uffd, at, length, False)\n"),
        Mutant("userfaultfd protects nothing", _U,
               "        return uffd_protect(u.uffd, at, length, True)\n", "        return 0\n"),
        Mutant("what may not be read stays in the host's tables", _U,
               "    return host_discard(at, length)\n", "    return 0\n"),
        Mutant("a flush by userfaultfd drops nothing", _U,
               "    return host_discard(host_address(mm, start), n << PAGE_SHIFT) == 0\n",
               "    return True\n"),
        Mutant("a flush by userfaultfd leaves other frames", _U,
               "        if not run_bit(run.mapped, first + i) and pte_host(pte[i]) != HOST_NONE:",
               "        if False:"),
        Mutant("what the host dropped stays away", _U,
               "    cdef int rc = open_registered(u, at, PAGE_SIZE, HOST_NONE, host)\n    if rc",
               "    cdef int rc = 0\n    if rc"),
    ),
    fast=("a frame of a run is given out twice", "the buddy never takes a run back",
          "a flush leaves runs mapped", "no chunk is ever mapped"),
)
