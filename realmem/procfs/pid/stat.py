"""
``/proc/PID/stat`` and ``statm``: numbers on one line.

Compare fs/proc/array.c:do_task_stat(), proc_pid_statm().
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.procfs.pid.status import comm

STAT_FIELDS = tuple(
    """
    pid comm state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime
    cutime cstime priority nice num_threads itrealvalue starttime vsize rss rsslim startcode
    endcode startstack kstkesp kstkeip signal blocked sigignore sigcatch wchan nswap cnswap
    exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time cguest_time
    start_data end_data start_brk arg_start arg_end env_start env_end exit_code
    """.split()
)
STATM_FIELDS = ("size", "resident", "shared", "text", "lib", "data", "dt")
RLIM_INFINITY = (1 << 64) - 1
PF_FORKNOEXEC = 0x40
SIGCHLD = 17


def format_stat(fields: Mapping[str, int | str]) -> str:
    """Write stat's text; a field that is not there is 0."""
    words = [str(fields.get(name, 0)) for name in STAT_FIELDS]
    words[1] = f"({words[1]})"
    return " ".join(words) + "\n"


def parse_stat(text: str) -> dict[str, int | str]:
    """Read stat's text, ours or the kernel's; a name may hold anything, a bracket too."""
    head, _, rest = text.rpartition(")")
    pid, _, name = head.partition(" (")
    state, *numbers = rest.split()
    return dict(zip(STAT_FIELDS, [int(pid), name, state, *map(int, numbers)], strict=True))


def format_statm(fields: Mapping[str, int]) -> str:
    """Write statm's text, all in pages; a field that is not there is 0."""
    return " ".join(str(fields.get(name, 0)) for name in STATM_FIELDS) + "\n"


def parse_statm(text: str) -> dict[str, int]:
    """Read statm's text."""
    return dict(zip(STATM_FIELDS, map(int, text.split()), strict=True))


def process_stat(process: Any) -> str:
    """Give a process's stat."""
    mm, parent = process.mm, process.parent
    file, anon, _, shmem = mm.core.rss
    minor, major = mm.core.faults
    return format_stat({
        "pid": process.pid,
        "comm": comm(process.name),
        "state": "S",
        "ppid": 0 if parent is None else parent.pid,
        "tpgid": -1,
        "flags": 0 if parent is None else PF_FORKNOEXEC,
        "minflt": minor,
        "majflt": major,
        "priority": 20,
        "num_threads": 1,
        "vsize": mm.core.counters[0] << PAGE_SHIFT,
        "rss": file + anon + shmem,
        "rsslim": RLIM_INFINITY,
        "startstack": mm.start_stack,
        "exit_signal": SIGCHLD,
        "start_brk": mm.start_brk,
    })  # fmt: skip


def process_statm(process: Any) -> str:
    """Give a process's statm."""
    core = process.mm.core
    total, data, _, stack, _ = core.counters
    file, anon, _, shmem = core.rss
    shared = file + shmem
    return format_statm(
        {"size": total, "resident": shared + anon, "shared": shared, "data": data + stack}
    )
