"""
The calls madvise and process_madvise.

Compare mm/madvise.c of Linux 6.18: the walk over the VMAs of a range is madvise_walk_vmas(),
which goes on past holes and says ENOMEM at the end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_GUARD_INSTALL,
    MADV_HWPOISON,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_SOFT_OFFLINE,
    MADV_WILLNEED,
    PAGE_SIZE,
    TASK_SIZE,
)
from realmem.mm.advice_flags import FLAG_ADVICE
from realmem.mm.advice_pages import PAGE_ADVICE, Piece, run
from realmem.mm.advice_sealed import may_advise
from realmem.mm.faultin import faultin_range
from realmem.mm.plan import KEEP, Plan, fail
from realmem.mm.tree import VmaTree
from realmem.mm.vma import VM_MAYBE_GUARD, Vma, page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

UIO_MAXIOV = 1024
MAX_RW_COUNT = 0x7FFFF000
_POPULATE = {MADV_POPULATE_READ: False, MADV_POPULATE_WRITE: True}
_FAILURE = MADV_HWPOISON, MADV_SOFT_OFFLINE
_REMOTE = MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE
_KNOWN = {*FLAG_ADVICE, *PAGE_ADVICE, *_POPULATE, *_FAILURE}


def madvise(mm: MemoryMap, addr: int, length: int, advice: int) -> None:
    """
    Advise on a range.

    :raises OSError: as Linux's; after ENOMEM for a hole the rest of the range has been advised.
    """
    start, length = as_register(addr, "addr"), as_register(length, "length")
    advice = as_register(advice, "advice")
    mm.core.check_alive()
    _madvise(mm, start, length, advice)


def process_madvise(
    mm: MemoryMap,
    ranges: Iterable[tuple[int, int]],
    advice: int,
    *,
    asker: MemoryMap | None = None,
) -> int:
    """
    Advise on several ranges.

    :param asker: the other process that asks, or None.
    :return: bytes of the ranges that were advised, up to one that failed.
    :raises OSError: as Linux's, where the first range fails.
    """
    advice = as_register(advice, "advice")
    pairs = [(as_register(a, "address"), as_register(n, "length")) for a, n in ranges]
    if len(pairs) > UIO_MAXIOV or any(n >= WORD // 2 for _, n in pairs):
        fail(errno.EINVAL, "ranges")
    # lib/iov_iter.c:__import_iovec(): one range alone is shortened before it is looked at.
    for start, length in pairs:
        length = min(length, MAX_RW_COUNT) if len(pairs) == 1 else length
        if start + length > TASK_SIZE:
            fail(errno.EFAULT, "ranges")
    mm.core.check_alive()
    if asker is not None:
        if advice not in _REMOTE:
            fail(errno.EINVAL, "advice that only a process itself may give")
        if not asker.capable("CAP_SYS_NICE"):
            fail(errno.EPERM, "CAP_SYS_NICE")
    done = 0
    for at, (start, length) in enumerate(pairs):
        length = min(length, MAX_RW_COUNT - done)
        if at and not length:
            continue            # iov_iter_advance() passes over it
        try:
            _madvise(mm, start, length, advice)
        except OSError:
            if not done:
                raise
            break
        done += length
    return done


def _madvise(mm: MemoryMap, start: int, length: int, advice: int) -> None:
    whole = page_align(length)
    end = start + whole
    if advice not in _KNOWN or start % PAGE_SIZE or whole >= WORD or end >= WORD:
        fail(errno.EINVAL, "advice or range")
    if start == end:
        return
    if advice in _FAILURE:
        if not mm.capable("CAP_SYS_ADMIN"):
            fail(errno.EPERM, "CAP_SYS_ADMIN")
        fail(errno.EINVAL, "memory failure is not configured")
    elif advice in _POPULATE:
        faultin_range(mm, start, end, write=_POPULATE[advice])
    elif advice in FLAG_ADVICE:
        rule = FLAG_ADVICE[advice]
        mm.change(lambda plan: _change_flags(plan, start, end, advice, rule))
    else:
        _do_pages(mm, start, end, advice)


def walk(tree: VmaTree, start: int, end: int, visit: Callable[[Vma, int, int], None]) -> None:
    """
    Visit what is mapped in a range, VMA by VMA (mm/madvise.c:madvise_walk_vmas()).

    :param tree: asked for one VMA after the other; ``visit`` may not change it.
    :raises OSError: ENOMEM at the end, if there was a hole; or what a visit raises, at once.
    """
    hole = False
    for vma in tree.span(start, end):
        hole |= vma.start > start
        first, start = max(vma.start, start), min(vma.end, end)
        visit(vma, first, start)
    if hole or start < end:
        fail(errno.ENOMEM, "a hole in the range")


def set_vma_name(plan: Plan, start: int, end: int, name: str | None) -> None:
    """
    Name what is mapped in a range, or unname it (madvise_set_anon_name()).

    :raises OSError: EBADF, a file's mapping; ENOMEM, a hole, or vm.max_map_count.
    """

    def visit(vma: Vma, first: int, last: int) -> None:
        if not vma.anon:
            fail(errno.EBADF, "only anonymous memory has a name")
        if vma.name != name:
            _modify(plan, first, last, name=name)

    walk(plan.tree, start, end, visit)


def _change_flags(
    plan: Plan, start: int, end: int, advice: int, rule: Callable[[Vma], int]
) -> None:
    def visit(vma: Vma, first: int, last: int) -> None:
        if not may_advise(vma, advice):
            fail(errno.EPERM, "sealed")
        flags = rule(vma)
        if flags != vma.vm_flags_word:
            _modify(plan, first, last, flags=flags)

    walk(plan.tree, start, end, visit)


def _modify(plan: Plan, start: int, end: int, flags: int = KEEP, name: str | None = KEEP) -> None:
    try:
        plan.modify(start, end, flags=flags, name=name)
    except OSError as error:
        # "kernel resources are temporarily unavailable"
        fail(errno.EAGAIN if error.errno == errno.ENOMEM else error.errno or 0)


def _mark(plan: Plan, vma: Vma, flag: int) -> None:
    if not vma.vm_flags_word & flag:
        marked = vma.with_flags(vma.vm_flags_word | flag)
        plan.set_vmas(vma.start, vma.end, [(marked, vma.start)])


def _do_pages(mm: MemoryMap, start: int, end: int, advice: int) -> None:
    """Do what leaves VMAs as they are: pieces are gathered first, then done in one go."""
    with mm.lock:
        pieces: list[Piece] = []
        refusal: OSError | None = None

        def planner(plan: Plan) -> None:
            def visit(vma: Vma, first: int, last: int) -> None:
                if not may_advise(vma, advice):
                    fail(errno.EPERM, "sealed")
                piece = PAGE_ADVICE[advice](mm, vma, first, last)
                if advice == MADV_GUARD_INSTALL:
                    # Before the markers, as in Linux: one that is interrupted leaves a "maybe".
                    _mark(plan, vma, VM_MAYBE_GUARD)
                if piece is not None:
                    pieces.append(piece)

            pieces.clear()
            walk(plan.tree, start, end, visit)

        try:
            mm.change(planner)
        except OSError as error:
            refusal = error
        run(pieces)
    if refusal is not None:
        raise refusal
