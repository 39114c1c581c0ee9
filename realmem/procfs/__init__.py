"""The kernel's text files, in the kernel's own format; one module for each family."""

from __future__ import annotations

from realmem.procfs.proc import ProcFS
from realmem.procfs.sysfs import SysFS

__all__ = ["ProcFS", "SysFS"]
