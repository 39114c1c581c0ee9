"""Mutants of huge pages: made, shared, split, moved, counted."""

from __future__ import annotations

from mutation import Mutant, Suite

_H, _C, _P, _F, _Z, _M = (
    f"_kernel/{name}.pyx"
    for name in ("huge", "collapse", "pgtable", "folio", "huge_zero", "mmap"))
THP = Suite(
    tests=("tests/test_collapse.py", "tests/test_thp.py", "tests/host/test_host_thp.py"),
    mutants=(
        # ---- collapse.pyx
        Mutant("a collapse copies while the host may store", _C,
               "    tlb_flush_locked(mm, base, base + PMD_SIZE)\n", ""),
        Mutant("a collapse leaves holes as they were", _C,
               "            memset(<void*>to, 0, PAGE_SIZE)", "            pass"),
        Mutant("a collapse keeps the old frames", _C,
               "            page_remove_rmap(mm, p)", "            pass"),
        Mutant("a collapse takes pinned pages", _C,
               "        if counts.c.refcount != counts.c.mapcount + 1:",
               "        if False and counts.c.refcount:"),
        Mutant("a collapse takes guard regions", _C, "    if s.markers or", "    if"),
        Mutant("a collapse opens what is read-only", _C,
               "(PTE_RW if vma.vm_flags & VM_WRITE else 0)", "PTE_RW"),
        Mutant("a collapse goes to the first node", _C,
               "s.load[nid] == most:", "nid == 0:"),
        Mutant("a collapse goes on past what is missing", _C,
               "            if result < SCAN_PMD_NULL:", "            if False:"),
        Mutant("a collapse ends at a pinned page", _C,
               "            if result < SCAN_PMD_NULL:", "            if True:"),
        Mutant("a collapse that failed keeps its frames", _C,
               "        free_pages(mm.mmu.m, folio, HPAGE_PMD_ORDER)\n", ""),
        # ---- huge.pyx
        Mutant("fork leaves a huge page writable", _H,
               "        entry = pte[i] & ~<uint64_t>PTE_RW\n", "        entry = pte[i]\n"),
        Mutant("fork shares a pinned huge page", _H,
               "    if (parent.nr_pins != 0 and not zero and",
               "    if (False and"),
        Mutant("fork does not count a huge page's mappings", _H,
               "            page_dup_rmap(p + i)", "            pass"),
        Mutant("a shared huge page is opened for stores", _H,
               "p[i].counts.word) != ONE_OWNER:", "p[i].counts.word) == 0:"),
        Mutant("a huge page looks at its first frame only", _H,
               "    for i in range(PTRS_PER_TABLE):\n        if not p[i].flags",
               "    for i in range(1):\n        if not p[i].flags"),
        Mutant("a moved huge page stays where it was", _H,
               "        clear_pte_locked(mm, pte + i)\n", ""),
        Mutant("a huge page is filled page by page", _H,
               "        tlb_fill_locked(mm, base, base + PMD_SIZE)", "        pass"),
        # ---- pgtable.pyx
        Mutant("a split huge page is still counted", _P,
               "    count_huge(mm.mmu, pmd[0], <uint64_t>-1)\n", ""),
        Mutant("a huge entry keeps its rights", _P,
               "    pmd[0] = (first & ~<uint64_t>PTE_RW) | writable | seen | PTE_PSE", "    pass"),
        Mutant("part of a huge page changes it as a whole", _P,
               "c.mode == PTES_SPLIT or c.addr & (PMD_SIZE - 1) or c.end - c.addr < PMD_SIZE:",
               "c.mode == PTES_SPLIT:"),
        # ---- the huge zero page
        Mutant("the huge zero page is another VMA's, too", _F,
               "            or start < vma.vm_start or start + PMD_SIZE > vma.vm_end\n", ""),
        Mutant("the huge zero page lies over what is there", _F,
               "            or not all_empty(first, PTRS_PER_TABLE)):", "            ):"),
        Mutant("the huge zero page may be written", _F,
               "make_entry(vma, mm.mmu.huge_zero_pfn) | PTE_SPECIAL",
               "make_entry(vma, mm.mmu.huge_zero_pfn) | PTE_SPECIAL | PTE_RW"),
        Mutant("the huge zero page is never given back", _Z, "    u.huge_zero_users -= 1\n", ""),
        Mutant("the huge zero page goes while a child has it", _M,
               "        huge_zero_dup_locked(child)", "        pass"),
        Mutant("the huge zero page is not zero", _Z, "GFP_NOWARN | GFP_ZERO)", "GFP_NOWARN)"),
    ),
    fast=("a collapse copies while the host may store", "fork leaves a huge page writable",
          "a huge entry keeps its rights"),
)
