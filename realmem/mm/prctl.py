"""The options of prctl that concern memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import (
    PAGE_SIZE,
    PR_GET_MEMORY_MERGE,
    PR_GET_THP_DISABLE,
    PR_SET_MEMORY_MERGE,
    PR_SET_THP_DISABLE,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
    PR_THP_DISABLE_EXCEPT_ADVISED,
)
from realmem.mm.advice_flags import ksm_compatible
from realmem.mm.madvise import set_vma_name
from realmem.mm.plan import Plan, fail
from realmem.mm.vma import VM_MERGEABLE, page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

ANON_VMA_NAME_MAX = 79          # bytes, without the end
_NO_NAME = frozenset("\\`$[]")


def prctl(mm: MemoryMap, option: int, *args: object) -> int:
    """
    Do what a process may ask about itself.

    :param args: what Linux takes as arg2 to arg5; missing ones are 0.
    :return: 0, or what was asked.
    :raises OSError: EINVAL, another option or argument; what naming a range raises.
    """
    option = as_register(option, "option")
    if len(args) > 4:
        raise TypeError(f"prctl takes up to five arguments, not {len(args) + 1}")
    mm.core.check_alive()
    values = [*args, *[0] * (4 - len(args))]
    if option == PR_SET_VMA:
        return _set_vma(mm, *values)
    numbers = [as_register(value, f"arg{i + 2}") for i, value in enumerate(values)]
    if option == PR_SET_THP_DISABLE:
        return _set_thp_disable(mm, *numbers)
    if option == PR_SET_MEMORY_MERGE:
        return _set_memory_merge(mm, *numbers)
    if option not in (PR_GET_THP_DISABLE, PR_GET_MEMORY_MERGE) or any(numbers):
        fail(errno.EINVAL, "option or argument")
    if option == PR_GET_THP_DISABLE:
        return mm.thp_disabled
    return int(bool(mm.tree.def_flags & VM_MERGEABLE))


def _set_vma(mm: MemoryMap, what: object, addr: object, size: object, name: object) -> int:
    """Compare kernel/sys.c:prctl_set_vma()."""
    if as_register(what, "arg2") != PR_SET_VMA_ANON_NAME:
        fail(errno.EINVAL, "arg2")
    start, length = as_register(addr, "addr"), as_register(size, "size")
    if name == 0 and not isinstance(name, bool):
        name = None
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        if len(name) > ANON_VMA_NAME_MAX or not all(map(_in_name, name)):
            fail(errno.EINVAL, "a name is up to 79 printable characters, none of \\`$[]")
    text: str | None = name
    whole = page_align(length)
    if start % PAGE_SIZE or whole >= WORD or start + whole >= WORD:
        fail(errno.EINVAL, "range")
    if whole:
        mm.change(lambda plan: set_vma_name(plan, start, start + whole, text))
    return 0


def _in_name(char: str) -> bool:
    return "\x1f" < char < "\x7f" and char not in _NO_NAME


def _set_thp_disable(mm: MemoryMap, disable: int, flags: int, arg4: int, arg5: int) -> int:
    """Compare kernel/sys.c:prctl_set_thp_disable()."""
    if arg4 or arg5 or flags & ~PR_THP_DISABLE_EXCEPT_ADVISED or (flags and not disable):
        fail(errno.EINVAL, "argument")
    mm.disable_thp((1 | flags) if disable else 0)
    return 0


def _set_memory_merge(mm: MemoryMap, enable: int, arg3: int, arg4: int, arg5: int) -> int:
    """Compare mm/ksm.c:ksm_enable_merge_any(), ksm_disable_merge_any()."""
    if arg3 or arg4 or arg5:
        fail(errno.EINVAL, "argument")
    mm.change(lambda plan: _mark_all(plan, bool(enable)))
    return 0


def _mark_all(plan: Plan, mergeable: bool) -> None:
    """
    Mark every VMA, and with def_flags those to come.

    Neighbours that are now alike stay apart, as in Linux.
    """
    if mergeable == bool(plan.tree.def_flags & VM_MERGEABLE):
        return
    for vma in plan.before:
        flags = vma.vm_flags_word & ~VM_MERGEABLE
        if mergeable and ksm_compatible(vma):
            flags |= VM_MERGEABLE
        if flags != vma.vm_flags_word:
            plan.set_vmas(vma.start, vma.end, [(vma.with_flags(flags), vma.start)])
    flags = plan.tree.def_flags & ~VM_MERGEABLE
    plan.set_def_flags(flags | VM_MERGEABLE if mergeable else flags)
