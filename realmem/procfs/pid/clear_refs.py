"""
``/proc/PID/clear_refs``: forget which pages were used.

Compare fs/proc/task_mmu.c:clear_refs_write().
"""

from __future__ import annotations

import errno
import os
from typing import Any

from realmem.mm.tree import VmaTree
from realmem.mm.vma import VM_SOFTDIRTY

PAGES = {1: "referenced", 2: "anon", 3: "file"}
SOFT_DIRTY = 4
MM_HIWATER_RSS = 5


def write_clear_refs(process: Any, text: str) -> None:
    """
    Do what writing a number into the file does.

    :param text: 1 clears the referenced bits of all pages, 2 of anonymous ones, 3 of mapped
        files'; 4 the soft-dirty bits; 5 resets VmHWM.
    :raises OSError: EINVAL, not such a number.
    """
    # The kernel copies 12 bytes and takes a decimal number with an optional sign.
    word = text[:12].strip(" \t\n\v\f\r")
    digits = word[1:] if word[:1] in ("+", "-") else word
    what = int(word) if digits.isascii() and digits.isdecimal() else 0
    if what in PAGES:
        process.mm.core.clear_refs(PAGES[what])
    elif what == SOFT_DIRTY:
        _clear_soft_dirty(process.mm)
    elif what == MM_HIWATER_RSS:
        process.mm.core.reset_hiwater()
    else:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"/proc/{process.pid}/clear_refs")


def _clear_soft_dirty(mm: Any) -> None:
    """Clear the bits of the pages, and of the VMAs, which stay as they are otherwise."""
    with mm.lock:
        tree = mm.tree
        vmas = [vma.with_flags(vma.vm_flags_word & ~VM_SOFTDIRTY) for vma in tree]
        mm.core.clear_refs("soft_dirty", VmaTree.of(vmas, tree.brk, tree.def_flags))
