"""
Where the host's kernel and realmem may differ, and why; nothing else is forgiven.

- **Names of VMAs** (prctl PR_SET_VMA): a kernel built without CONFIG_ANON_VMA_NAME answers EINVAL;
  there the generator leaves them out.
- **Soft-dirty** (pagemap bit 55, VmFlags sd): not compared, many kernels are built without it.
- **Sizes in between**: the host has more memory and a larger address space than realmem's window;
  no length lies between some MiB and 2^46, where one would answer ENOMEM and the other succeed.
- **MREMAP_DONTUNMAP of what is locked**: Linux takes the lock from the old place, but leaves its
  pages in VmLck for good (mm/mremap.c:dontunmap_complete()); left out while anything is locked.
- **Guard regions in pagemap**: the kernel also sets bit 62, for a marker is kept as a swap entry;
  nothing is swapped, and realmem says so.
- **MADV_PAGEOUT**: without swap the kernel still frees what MADV_FREE gave up and MAP_DROPPABLE
  pages, and unmaps shared ones; realmem reclaims nothing yet.  Left out where there are any.
- **process_madvise of no bytes with unknown advice**: 6.18 answers 0, for it looks at advice range
  by range; the kernel's selftests want EINVAL, as before and after.
- **Copies that the kernel makes for nothing**: a frame whose last owner writes is copied all the
  same while one of the kernel's batches (folio_batch: LRU, mlock) holds it.  realmem must copy
  nowhere else.
- **Donations**: of two that share a frame the writer may keep it, and the other finds another one;
  which pages are shared by whom is compared all the same.
- **MADV_HWPOISON, MADV_SOFT_OFFLINE**: never asked for; the host would lose real memory.
"""

from __future__ import annotations

from host.host_world import GUARD, SWAPPED
from host.ops import Answer, Op

# VmFlags that depend on how the host's kernel was built.
_UNEQUAL_FLAGS = {"sd"}


def same_answer(op: Op, host: Answer, ours: Answer) -> bool:
    """Whether two answers agree."""
    if op.name == "process_madvise" and not any(length for _, length in _ranges(op)):
        return True
    return host == ours


def _ranges(op: Op) -> tuple[tuple[int, int], ...]:
    ranges = op.args[0]
    assert isinstance(ranges, tuple)
    return ranges


def word(raw: int) -> int:
    """Take those pagemap bits out that are not compared."""
    return raw & ~SWAPPED if raw & GUARD else raw


def flags(text: str) -> str:
    """Take those VmFlags out that are not compared."""
    return " ".join(flag for flag in text.split() if flag not in _UNEQUAL_FLAGS)
