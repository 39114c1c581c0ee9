"""Whole-process tests: code that runs in a fresh interpreter, which may die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

PRELUDE = """
import contextlib, ctypes, faulthandler, gc, os, signal, sys, tempfile, threading, time, warnings
import numpy as np
import realmem as rm
from realmem.errors import *
from realmem.layout import *
from realmem.machine import Machine
Machine.__init__.__kwdefaults__["faults"] = os.environ.get("REALMEM_TEST_FAULTS", "sigsegv")
Machine.__init__.__kwdefaults__["window"] = os.environ.get("REALMEM_TEST_WINDOW", "64G")

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
PAGE = 4096

def raises(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{call} did not raise {kind}")

def array(process, addr, length, dtype=np.uint64):
    return np.frombuffer(process.view(addr, length), dtype=dtype)

def mapped(process, length):
    addr = process.mmap(None, length, RW, ANON)
    return addr, array(process, addr, length)

@contextlib.contextmanager
def one_process(memory, swap=None, **options):
    # With a swap area, if a size is given.
    with tempfile.TemporaryDirectory() as folder, Machine(1, memory, **options) as machine:
        p = machine.spawn()
        if swap:
            machine.swapon(os.path.join(folder, "swap"), size=swap)
        yield machine, p

def pte(process, addr):
    return process.walk(addr)[-1]

def free_pages(machine):
    machine.drain_all_pages()
    return sum(node.free_pages for node in machine.nodes)

def comes_back(machine, before):
    # kswapd may be about to let go of something.
    deadline = time.monotonic() + 10
    while free_pages(machine) < before:
        assert time.monotonic() < deadline, (free_pages(machine), before)
        for cache in machine.kmem_caches.values():
            cache.shrink()
        time.sleep(0.01)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def same_realmem() -> str:
    """Give what has a child import what this process does: a mutant, not the editable install."""
    if any("editable" in type(finder).__module__ for finder in sys.meta_path):
        return ""
    return (f"import sys\nsys.path[:] = {sys.path!r}\n"
            "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n")


def run_child(
    code: str,
    *,
    returncode: int = 0,
    options: tuple[str, ...] = (),
    timeout: int = 120,
    env: dict[str, str] | None = None,
    faults: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, and check how it ends."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c",
         same_realmem() + PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **({"REALMEM_TEST_FAULTS": faults} if faults else {}), **(env or {})},
    )
    assert done.returncode == returncode, (done.returncode, done.stdout, done.stderr)
    return done
