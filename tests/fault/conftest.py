"""Whole-process tests of the fault path: each runs in a child, which may die."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

PRELUDE = """
import contextlib, ctypes, faulthandler, gc, os, signal, sys, threading, warnings
import numpy as np
import realmem as rm
from realmem.errors import *
from realmem.layout import *
from realmem.machine import Machine

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
def one_process(memory, **options):
    with Machine(nodes=1, memory=memory, **options) as machine:
        yield machine, machine.spawn()

def pte(process, addr):
    return process.walk(addr)[-1]

def free_pages(machine):
    machine.drain_all_pages()
    return sum(node.free_pages for node in machine.nodes)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def child() -> Run:
    """Give a function that runs code in a fresh interpreter and checks how it ends."""

    def run(
        code: str, *, returncode: int = 0, options: tuple[str, ...] = (), timeout: int = 120
    ) -> subprocess.CompletedProcess[str]:
        text = PRELUDE + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-W", "error", *options, "-c", text],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == returncode, (done.returncode, done.stdout, done.stderr)
        return done

    return run
