"""``machine.procfs``: the files under ``/proc`` that describe a machine's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from realmem.procfs import (
    buddyinfo,
    meminfo,
    pagetypeinfo,
    slabinfo,
    vmallocinfo,
    vmstat,
    zoneinfo,
)
from realmem.procfs.pid import NAMES, pid_file, pid_files
from realmem.procfs.sysctl import sysctl_files
from realmem.procfs.sysfs import SysFS
from realmem.procfs.tree import TextFile, TextTree
from realmem.vmstat import read_vmstat

_PID_PATH = re.compile(rf"/proc/([1-9][0-9]*)/({'|'.join(NAMES)})", re.ASCII)


class ProcFS(TextTree):
    """
    Mapping of paths under ``/proc`` to texts, made when read.

    :param machine: whose files they are.
    """

    def __init__(self, machine: Any) -> None:
        super().__init__(
            machine,
            self._memory_files,
            lambda: sysctl_files(machine.sysctl),
            self._process_files,
        )

    def _process_files(self) -> Iterator[tuple[str, TextFile]]:
        for process in self._machine.processes.values():
            yield from pid_files(process)

    def _file(self, path: object) -> TextFile | None:
        # Of thousands of processes, only the one that is asked for is looked at.
        match = _PID_PATH.fullmatch(path) if isinstance(path, str) else None
        if match is None:
            return super()._file(path)
        process = self._machine.processes.get(int(match[1]))
        return pid_file(process, match[2]) if process is not None else None

    def _memory_files(self) -> Iterator[tuple[str, TextFile]]:
        machine = self._machine
        yield "/proc/buddyinfo", TextFile(lambda: buddyinfo.machine_buddyinfo(machine))
        yield "/proc/meminfo", TextFile(lambda: meminfo.machine_meminfo(machine))
        yield "/proc/pagetypeinfo", TextFile(lambda: pagetypeinfo.machine_pagetypeinfo(machine))
        yield "/proc/slabinfo", TextFile(lambda: slabinfo.machine_slabinfo(machine))
        yield "/proc/swaps", TextFile(lambda: machine._get_swaps_text())
        yield "/proc/vmallocinfo", TextFile(lambda: vmallocinfo.machine_vmallocinfo(machine))
        yield "/proc/vmstat", TextFile(lambda: vmstat.format_counters(read_vmstat(machine)))
        yield "/proc/zoneinfo", TextFile(lambda: zoneinfo.machine_zoneinfo(machine))

    def export(self, directory: str | os.PathLike[str]) -> None:
        """
        Write ``/proc`` and ``/sys`` files below a directory, for tools that read them.

        :param directory: gets ``proc/...`` and ``sys/...``; made where it is missing.
        """
        self.write_under(directory)
        SysFS(self._machine).write_under(directory)
