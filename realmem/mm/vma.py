"""VMAs as values: what was promised to a process.  Testable without memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SHIFT,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

# include/linux/mm.h; the may-bits are what mprotect could give.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYEXEC = 0x40
VM_MAYSHARE = 0x80
VM_GROWSDOWN = 0x100
VM_PFNMAP = 0x400
VM_MAYBE_GUARD = 0x800
VM_LOCKED = 0x2000
VM_IO = 0x4000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x10000
VM_DONTCOPY = 0x20000
VM_DONTEXPAND = 0x40000
VM_LOCKONFAULT = 0x80000
VM_ACCOUNT = 0x100000
VM_NORESERVE = 0x200000
VM_WIPEONFORK = 0x2000000
VM_DONTDUMP = 0x4000000
VM_SOFTDIRTY = 0x8000000
VM_MIXEDMAP = 0x10000000
VM_HUGEPAGE = 0x20000000
VM_NOHUGEPAGE = 0x40000000
VM_MERGEABLE = 1 << 31
VM_DROPPABLE = 1 << 40
VM_SEALED = 1 << 42

VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_MAY_ALL = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT
# What never keeps VMAs from being merged; the merged one has it if one had.
VM_STICKY = VM_SOFTDIRTY | VM_MAYBE_GUARD
# What is never merged, nor locked.
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP

# fs/proc/task_mmu.c:show_smap_vma_flags(), in the order of the bits
FLAG_NAMES = {
    VM_READ: "rd",
    VM_WRITE: "wr",
    VM_EXEC: "ex",
    VM_SHARED: "sh",
    VM_MAYREAD: "mr",
    VM_MAYWRITE: "mw",
    VM_MAYEXEC: "me",
    VM_MAYSHARE: "ms",
    VM_GROWSDOWN: "gd",
    VM_PFNMAP: "pf",
    VM_MAYBE_GUARD: "gu",
    VM_LOCKED: "lo",
    VM_IO: "io",
    VM_SEQ_READ: "sr",
    VM_RAND_READ: "rr",
    VM_DONTCOPY: "dc",
    VM_DONTEXPAND: "de",
    VM_LOCKONFAULT: "lf",
    VM_ACCOUNT: "ac",
    VM_NORESERVE: "nr",
    VM_WIPEONFORK: "wf",
    VM_DONTDUMP: "dd",
    VM_SOFTDIRTY: "sd",
    VM_MIXEDMAP: "mm",
    VM_HUGEPAGE: "hg",
    VM_NOHUGEPAGE: "nh",
    VM_MERGEABLE: "mg",
    VM_DROPPABLE: "dp",
    VM_SEALED: "sl",
}


@dataclass(frozen=True, slots=True)
class FileRef:
    """
    An opened file behind a mapping; equal to none but itself, as a struct file is.

    :ivar path: as /proc/PID/maps showed it when it was opened.
    :ivar inode: the file's frames; None for /dev/zero, which has none.
    :ivar shown: whether mincore() may tell who maps it what of it is in memory.
    :ivar number: of this opening; the kernel side knows it by that.
    """

    path: str
    inode: Any = None
    shown: bool = True
    number: int = field(default_factory=partial(next, itertools.count(1)))

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True, init=False)
class Vma:
    """
    One range of addresses with one set of rights.

    :ivar start: first address.
    :ivar end: one past the last.
    :ivar vm_flags_word: VM_* bits.
    :ivar pgoff: Linux's vm_pgoff, in pages: of private anonymous memory its first page's number
        when it was made, of shared memory the page within its object.
    :ivar object: None; the object of shared anonymous memory; or a FileRef, a file's.
    :ivar policy: memory policy of its own, or None.
    :ivar name: set by prctl, or None.
    """

    start: int
    end: int
    vm_flags_word: int
    pgoff: int
    object: Any
    policy: Any
    name: str | None

    def __init__(
        self,
        start: int,
        end: int,
        vm_flags_word: int,
        pgoff: int | None = None,
        object: Any = None,
        policy: Any = None,
        name: str | None = None,
    ) -> None:
        _SET_START(self, start)
        _SET_END(self, end)
        _SET_FLAGS(self, vm_flags_word)
        _SET_PGOFF(self, start >> PAGE_SHIFT if pgoff is None else pgoff)
        _SET_OBJECT(self, object)
        _SET_POLICY(self, policy)
        _SET_NAME(self, name)

    # ---- parts and variants ----

    def piece(self, start: int, end: int) -> Vma:
        """Give the same promise for another range; ``pgoff`` stays linear."""
        pgoff = self.pgoff + ((start - self.start) >> PAGE_SHIFT)
        return Vma(
            start, end, self.vm_flags_word, pgoff, self.object, self.policy, self.name
        )

    def with_flags(self, vm_flags_word: int) -> Vma:
        """Give the same range with other VM_* bits."""
        return Vma(
            self.start, self.end, vm_flags_word, self.pgoff, self.object, self.policy, self.name
        )

    @property
    def pages(self) -> int:
        """Its length in pages."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def private_anon(self) -> bool:
        """Whether its faults find zero pages of its own (mm/util.c:vma_is_anonymous())."""
        return self.object is None or (
            isinstance(self.object, FileRef) and self.object.inode is None
        )

    @property
    def inode(self) -> Any:
        """The frames of the file that it maps, or None."""
        return self.object.inode if isinstance(self.object, FileRef) else None

    def pages_at(self, start: int, end: int) -> tuple[int, int]:
        """Give the first and the last page within the object of a part of it."""
        first = self.pgoff + ((start - self.start) >> PAGE_SHIFT)
        return first, first + ((end - start) >> PAGE_SHIFT) - 1

    # ---- what users see ----

    @property
    def prot(self) -> int:
        """PROT_* bits."""
        word = self.vm_flags_word
        return (
            (PROT_READ if word & VM_READ else 0)
            | (PROT_WRITE if word & VM_WRITE else 0)
            | (PROT_EXEC if word & VM_EXEC else 0)
        )

    @property
    def flags(self) -> int:
        """MAP_* bits."""
        word = self.vm_flags_word
        flags = MAP_SHARED if word & VM_MAYSHARE else MAP_PRIVATE
        if word & VM_DROPPABLE:
            flags = MAP_DROPPABLE
        if not isinstance(self.object, FileRef):
            flags |= MAP_ANONYMOUS
        if word & VM_GROWSDOWN:
            flags |= MAP_GROWSDOWN
        if word & VM_LOCKED:
            flags |= MAP_LOCKED
        if word & VM_NORESERVE:
            flags |= MAP_NORESERVE
        return flags

    @property
    def vm_flags(self) -> frozenset[str]:
        """Linux's two-letter names, as in smaps."""
        word = self.vm_flags_word
        return frozenset([name for bit, name in FLAG_NAMES.items() if word & bit])

    @property
    def offset(self) -> int:
        """Bytes into the object behind it; 0 for private anonymous memory."""
        return 0 if self.object is None else self.pgoff << PAGE_SHIFT

    @property
    def file(self) -> str | None:
        """The path of the file behind it, as /proc/PID/maps shows it, or None."""
        if self.object is None:
            return None
        return self.object.path if isinstance(self.object, FileRef) else "/dev/zero (deleted)"

    @property
    def anon(self) -> bool:
        """Whether it is anonymous memory, private or shared."""
        return not isinstance(self.object, FileRef)

    @property
    def locked(self) -> bool:
        """Whether it is locked in memory."""
        return bool(self.vm_flags_word & VM_LOCKED)


# A frozen dataclass sets its slots by object.__setattr__(), which looks each up by name: half of
# the time of making one.
_SET_START = Vma.__dict__["start"].__set__
_SET_END = Vma.__dict__["end"].__set__
_SET_FLAGS = Vma.__dict__["vm_flags_word"].__set__
_SET_PGOFF = Vma.__dict__["pgoff"].__set__
_SET_OBJECT = Vma.__dict__["object"].__set__
_SET_POLICY = Vma.__dict__["policy"].__set__
_SET_NAME = Vma.__dict__["name"].__set__


def is_exec_mapping(flags: int) -> bool:
    """Whether it counts as program text (mm/vma.h)."""
    return flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC


def is_data_mapping(flags: int) -> bool:
    """Whether it counts as data, which RLIMIT_DATA limits (mm/vma.h)."""
    return flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE


def is_accountable(flags: int) -> bool:
    """Whether its pages are charged to vm_committed_as (mm/vma.c:accountable_mapping())."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


def page_align(length: int) -> int:
    """Round up to whole pages."""
    return (length + PAGE_SIZE - 1) & -PAGE_SIZE
