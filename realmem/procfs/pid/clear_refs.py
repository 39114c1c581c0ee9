"""
``/proc/PID/clear_refs``: forget which pages were used.

Compare fs/proc/task_mmu.c:clear_refs_write().
"""

from __future__ import annotations

import errno
import os
from typing import Any

WHAT = {1: "referenced", 2: "anon", 3: "file", 4: "soft_dirty", 5: "mm_hiwater_rss"}


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
    what = WHAT.get(int(word)) if digits.isascii() and digits.isdecimal() else None
    if what is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"/proc/{process.pid}/clear_refs")
    process.mm.core.clear_refs(what)
