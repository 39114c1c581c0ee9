"""The kernel side is signal-safe as far as its generated C can tell, and the scan can tell."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "cython/realmem/_kernel"
OPENING = """\
# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
"""


@pytest.fixture(scope="module")
def scan():
    pytest.importorskip("Cython", reason="the scan translates .pyx files: Cython is not here")
    where = ROOT / "tools/check_kernel_side.py"
    spec = importlib.util.spec_from_file_location("check_kernel_side", where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.name for path in KERNEL.glob("*.pyx")))
def test_module_is_clean(scan, name):
    assert [str(found) for found in scan.check(KERNEL / name)] == []


def test_shared_declarations_are_clean(scan):
    files = [*scan.SHARED, *KERNEL.glob("*.pxd")]
    assert [str(found) for path in files
            for found in scan.scan_source(path, path.read_text())] == []


# Each compiles without a word as noexcept nogil, and takes the GIL (or a libc lock) inside.
HIDDEN = {
    "division": ("", "cdef int f(int a, int b) noexcept nogil:\n    return a // b\n"),
    "remainder": ("", "cdef int f(int a, int b) noexcept nogil:\n    return a % b\n"),
    "assert": (OPENING, "cdef int f(int a) noexcept nogil:\n    assert a > 0\n    return a\n"),
    "bounds": ("", "cdef int f(int[:] a) noexcept nogil:\n    return a[3]\n"),
    "except": (OPENING, "cdef int g(int a) except -1 nogil:\n    return a\n"
                        "cdef int f(int a) noexcept nogil:\n    return g(a)\n"),
    "void": (OPENING, "cdef void g(int a) nogil:\n    pass\n"
                      "cdef void f(int a) noexcept nogil:\n    g(a)\n"),
    "gil": (OPENING, "cdef int f(int a) noexcept nogil:\n    with gil:\n        print(a)\n"
                     "    return a\n"),
    "malloc": (OPENING, "from libc.stdlib cimport malloc\n"
                        "cdef void* f(int a) noexcept nogil:\n    return malloc(a)\n"),
    "printf": (OPENING, "from libc.stdio cimport printf\n"
                        "cdef void f(int a) noexcept nogil:\n    printf(b'%d', a)\n"),
}


@pytest.mark.parametrize("sample", sorted(HIDDEN))
def test_hidden_python_is_found(scan, sample, tmp_path):
    opening, body = HIDDEN[sample]
    source = tmp_path / "sample.pyx"
    source.write_text(opening + body)
    assert "f" in {name.rpartition("_")[2] for name, _ in scan.scan_c(scan.translate(source))}


def test_clean_code_passes(scan, tmp_path):
    source = tmp_path / "sample.pyx"
    source.write_text(OPENING + """\
from libc.errno cimport errno
cdef struct thing:
    int count
    int[4] slot
cdef int f(thing* t, int a, int b) noexcept nogil:
    cdef int i
    try:
        for i in range(4):
            t.slot[i] += min(a, b) << 1
        t.count = a // b + a % b        # like malloc(), but only in words
    finally:
        errno = 0
    return t.slot[2]
""")
    assert scan.check(source) == []


@pytest.mark.parametrize("line, why", [
    ("def f(): pass", "a def function takes the GIL"),
    ("import os", "a Python import"),
    ("from realmem.errors import HostError", "a Python import"),
    ("cdef class A: pass", "a cdef class"),
    ("from cpython.mem cimport PyMem_Malloc", "a cimport of cpython"),
])
def test_source_that_does_not_belong(scan, line, why, tmp_path):
    found = list(scan.scan_source(tmp_path / "sample.pyx", OPENING + line + "\n"))
    assert [finding.what for finding in found] == [why]


def test_c_text_and_missing_directives(scan, tmp_path):
    text = 'cdef extern from *:\n    """\n    /* malloc() */ void g() { free(0); }\n    """\n'
    found = {finding.what for finding in scan.scan_source(tmp_path / "sample.pyx", text)}
    assert "free" in found and "malloc" not in found
    assert "cdivision=True is missing at the top" in found
