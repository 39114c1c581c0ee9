"""
``/proc/sys/vm``: the sysctls of ``machine.sysctl`` as files.

What a write may look like is kernel/sysctl.c:do_proc_dointvec()'s: C's number forms, blanks
between, and only the first number of a scalar counts.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any

from realmem.procfs.tree import TextFile

_NUMBER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


def sysctl_files(sysctl: MutableMapping[str, Any]) -> Iterator[tuple[str, TextFile]]:
    """Give a file for each sysctl."""
    for name in sysctl:
        yield (
            "/proc/sys/" + name.replace(".", "/"),
            TextFile(partial(_read, sysctl, name), partial(_write, sysctl, name)),
        )


def _read(sysctl: MutableMapping[str, Any], name: str) -> str:
    value = sysctl[name]
    return "\t".join(map(str, value)) + "\n" if isinstance(value, tuple) else f"{value}\n"


def _write(sysctl: MutableMapping[str, Any], name: str, text: str) -> None:
    if not text:
        return
    if isinstance(sysctl[name], tuple):
        # The kernel takes the numbers before the first bad one and reports no error.
        nr_values = len(sysctl[name])
        try:
            numbers = _numbers(text)[:nr_values]
            if numbers:
                sysctl[name] = numbers
        except OSError:
            return
    else:
        numbers = _numbers(text)
        if not numbers:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), text)
        sysctl[name] = numbers[0]


def _numbers(text: str) -> list[int]:
    """Read the numbers before the first thing that is none."""
    numbers = []
    for word in text.split():
        match = _NUMBER.fullmatch(word)
        if match is None:
            break
        sign, digits = match.groups()
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
        numbers.append(int(sign + digits, base))
    return numbers
