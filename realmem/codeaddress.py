"""What stands at an address of compiled code, for people."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_ALLOCATOR = tuple(f"realmem._kernel.{name}" for name in ("slab", "slab_debug", "kmalloc"))


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def describe_address(address: int) -> str:
    """
    Name the library that an address lies in, and its place there, as addr2line takes them.

    :return: such as ``example.so+0x1234``; ``compiled code`` where it is the allocator's own,
        which stood in between; the bare address where nothing is known.
    """
    info = _DlInfo()
    if not ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info)):
        return f"{address:#x}"
    library = info.dli_fname.decode(errors="replace")
    if library in (getattr(sys.modules.get(name), "__file__", None) for name in _ALLOCATOR):
        return "compiled code"
    return f"{Path(library).name}+{address - (info.dli_fbase or 0):#x}"
