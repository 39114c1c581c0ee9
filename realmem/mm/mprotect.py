"""The call mprotect (mm/mprotect.c:do_mprotect_pkey() => mprotect_fixup())."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
)
from realmem.mm.limits import may_expand
from realmem.mm.plan import Plan, fail
from realmem.mm.vma import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_NORESERVE,
    VM_SEALED,
    VM_SHARED,
    VM_WRITE,
    Vma,
    page_align,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

KNOWN = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM
GROWS = PROT_GROWSDOWN | PROT_GROWSUP


def mprotect(mm: MemoryMap, addr: int, length: int, prot: int) -> None:
    """
    Change the rights of a range; VMAs before a refusal keep the new ones.

    :raises OSError: as Linux's.
    """
    start, length = as_register(addr, "addr"), as_register(length, "length")
    prot = as_register(prot, "prot")
    grows = prot & GROWS
    prot &= ~GROWS
    if grows == GROWS:
        fail(errno.EINVAL, "PROT_GROWSDOWN with PROT_GROWSUP")
    if start % PAGE_SIZE:
        fail(errno.EINVAL, "address not aligned")
    if length == 0:
        return
    end = (start + page_align(length)) % WORD
    if end <= start:
        fail(errno.ENOMEM, "length")
    if prot & ~KNOWN:
        fail(errno.EINVAL, "unknown rights")

    def planner(plan: Plan) -> None:
        first = plan.find(start)
        if first is None or first.start >= end:
            fail(errno.ENOMEM, "not mapped")
        at = start
        if grows & PROT_GROWSDOWN:
            at = first.start
            if not first.vm_flags_word & VM_GROWSDOWN:
                fail(errno.EINVAL, "PROT_GROWSDOWN of what does not grow")
        elif first.start > start:
            fail(errno.ENOMEM, "not mapped")
        elif grows & PROT_GROWSUP:
            fail(errno.EINVAL, "nothing grows up here")
        while at < end:
            vma = plan.find(at)
            if vma is None or vma.start > at:
                fail(errno.ENOMEM, "not mapped")
            last = min(vma.end, end)
            _fixup(plan, vma, at, last, prot & VM_ACCESS_FLAGS)
            at = last

    mm.change(planner)


def _fixup(plan: Plan, vma: Vma, start: int, end: int, access: int) -> None:
    """Change one VMA, or a part of it; PROT_* bits are VM_* bits."""
    old = vma.vm_flags_word
    new = access | (old & ~VM_ACCESS_FLAGS)
    if access & ~(old >> 4):
        fail(errno.EACCES, "more than the file was opened for")
    if old & VM_SEALED:
        fail(errno.EPERM, "sealed")
    if new == old:
        return
    pages = (end - start) >> PAGE_SHIFT
    if new & VM_WRITE:
        if not may_expand(plan, new, pages) and may_expand(plan, old, pages):
            fail(errno.ENOMEM, "RLIMIT_DATA")
        if not old & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE):
            plan.charge_pages(pages)
            new |= VM_ACCOUNT
    elif old & VM_ACCOUNT and vma.private_anon and not plan.anon_vma(vma)[0]:
        # Nothing was ever written there: what was charged can go back.
        new &= ~VM_ACCOUNT
    charged = new & VM_ACCOUNT and not old & VM_ACCOUNT
    try:
        merged = plan.modify(start, end, flags=new)
    except OSError:
        if charged:
            plan.charge_pages(-pages)
        raise
    plan.protect(start, end)
    if old & VM_ACCOUNT and not new & VM_ACCOUNT:
        plan.charge_pages(-pages)
    if (old & (VM_WRITE | VM_SHARED | VM_LOCKED | VM_LOCKONFAULT) == VM_LOCKED
            and new & VM_WRITE):
        # Linux faults its pages in before it comes to the next VMA, which may merge with it.
        plan.prepare_anon(merged)
        plan.populate.append((start, end))
    plan.account(old, -pages)
    plan.account(new, pages)
