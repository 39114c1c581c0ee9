"""What a machine's sysctls say to system calls; one for all processes of a machine."""

from __future__ import annotations

from dataclasses import dataclass

from realmem.layout import PAGE_SIZE

OVERCOMMIT_GUESS, OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER = range(3)


@dataclass(slots=True)
class VmSettings:
    """
    The vm sysctls that system calls read, by their names without ``vm.``.

    :ivar stack_guard_gap: bytes (a boot option of Linux, in pages).
    """

    max_map_count: int = 65530
    mmap_min_addr: int = 65536
    overcommit_memory: int = OVERCOMMIT_GUESS
    overcommit_ratio: int = 50
    overcommit_kbytes: int = 0
    admin_reserve_kbytes: int = 8192
    user_reserve_kbytes: int = 131072
    stack_guard_gap: int = 256 * PAGE_SIZE
