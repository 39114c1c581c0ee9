"""
Check that the kernel side can run inside a signal handler.

    .venv/bin/python tools/check_kernel_side.py [--json] [FILE.pyx ...]

`noexcept nogil` does not promise that: `//` without cdivision, an assert, a bounds check or a
call of an `except` function compile silently and take the GIL inside.  The generated C shows it.
So each module under cython/realmem/_kernel is translated, and every function body in it is
searched for

- a name of the Python C API or of Cython's run time (Py*, __Pyx_*, __PYX_*),
- a libc function that allocates, locks or prints through stdio.

The sources (with the C text inside them and inside the .pxd files they stand on) are searched for
the same, and for what does not belong there at all: def, import, cdef class, an object.
Exit status 1 when anything is found, one line each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "cython"
KERNEL = INCLUDE / "realmem/_kernel"
SHARED = [INCLUDE / "realmem" / name for name in ("types.pxd", "compiler.pxd", "linux.pxd")]

DIRECTIVES = ("cdivision=True", "boundscheck=False", "wraparound=False",
              "initializedcheck=False", "nonecheck=False", "profile=False", "linetrace=False")

PYTHON_API = re.compile(r"\b(?:_?Py(?:[A-Z]\w*)?_\w+|__Pyx_\w+|__PYX_\w+)")
LIBC = re.compile(
    r"(?<![.\w>])(?:malloc|calloc|realloc|reallocarray|free|aligned_alloc|posix_memalign|strdup|"
    r"v?[fs]?n?printf|puts|fputs|putchar|perror|fopen|fwrite|fflush|exit|"
    r"pthread_mutex_lock|pthread_create|dlopen|dlsym|syslog)\s*\(")

SOURCE_RULES = [
    (re.compile(r"^\s*def\s"), "a def function takes the GIL"),
    (re.compile(r"^\s*cpdef\s"), "a cpdef function takes the GIL"),
    (re.compile(r"^\s*(?:async\s+)?class\s"), "a Python class"),
    (re.compile(r"^\s*cdef\s+class\s"), "a cdef class"),
    (re.compile(r"^\s*(?:import\s|from\s+\S+\s+import\s)"), "a Python import"),
    (re.compile(r"^\s*(?:from\s+cpython\b|cimport\s+cpython\b)"), "a cimport of cpython"),
    (re.compile(r"\bwith\s+gil\b"), "with gil"),
    (re.compile(r"^\s*(?:raise|assert)\b"), "raise or assert (VM_BUG_ON says the same safely)"),
    (re.compile(r"\bcdef\s+object\b"), "a Python object"),
    (re.compile(r"^\s*include\s"), "an include"),
]


class Finding(NamedTuple):
    """One thing that may not be there."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}: {self.what}"


def without_comments(code: str) -> str:
    """Blank C comments and string literals, line by line as long as before."""
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", blank,
                  code, flags=re.DOTALL)


def functions(generated: str) -> Iterator[tuple[str, str]]:
    """
    Yield (name, body) of each function that a module's own code became.

    Cython writes them between two markers, each opening at the first column and closed by a
    brace at the first column; what follows the second marker runs at import and unloading.
    """
    code = generated.partition("Code section: module_code")[2]
    code = code.partition("Code section: module_exttypes")[0]
    head = re.compile(r"^[A-Za-z_][^\n;{}]*?\b(\w+)\([^;{}]*\)\s*\{\n(.*?)^\}", re.M | re.S)
    for match in head.finditer(without_comments("/*" + code)):
        yield match.group(1), match.group(2)


def scan_c(generated: str) -> Iterator[tuple[str, str]]:
    """Yield (function, token) for each forbidden token in generated C."""
    for name, body in functions(generated):
        readable = re.sub(r"^.*?__pyx_f_", "", name)
        for rule in (PYTHON_API, LIBC):
            for token in sorted(set(rule.findall(body))):
                yield readable, token.strip(" (")


def translate(source: Path) -> str:
    """Turn a .pyx into C with the flags of the build; a translation error is fatal."""
    # Within this process: starting Cython costs more than translating a module.
    cython: Any = importlib.import_module("Cython.Compiler.Main")
    with tempfile.TemporaryDirectory(prefix="realmem-cython-") as where:
        result = Path(where, "out.c")
        options = cython.CompilationOptions(include_path=[str(INCLUDE)],
                                            output_file=str(result), language_level=3)
        done = cython.compile_single(str(source), options, full_module_name=None)
        if done.num_errors:
            raise SystemExit(f"{source}: {done.num_errors} errors")
        return result.read_text()


def pieces(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (line number, line, whether it is C text inside triple quotes) of Cython source."""
    in_c = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith('"""') or line.strip().endswith('"""'):
            in_c ^= line.count('"""') % 2 == 1
            continue
        yield number, line, in_c


def scan_source(path: Path, text: str) -> Iterator[Finding]:
    """Find what Cython source itself gives away, and C text that calls what it may not."""
    c_text = without_comments("\n".join(line if in_c else "" for line, in_c in (
        (line, in_c) for _, line, in_c in pieces(text))))
    for rule in (PYTHON_API, LIBC):
        for token in sorted(set(rule.findall(c_text))):
            yield Finding(path.name, "C text", token.strip(" ("))
    for number, line, in_c in pieces(text):
        for pattern, why in SOURCE_RULES:
            if not in_c and pattern.search(line.partition("#")[0]):
                yield Finding(path.name, f"line {number}", why)
    if path.suffix == ".pyx":
        opening = "".join(line for line in text.splitlines()[:12] if line.startswith("# cython:"))
        for directive in DIRECTIVES:
            if directive not in opening.replace(" ", ""):
                yield Finding(path.name, "directives", f"{directive} is missing at the top")


def check(source: Path) -> list[Finding]:
    """Check one module of the kernel side."""
    found = list(scan_source(source, source.read_text()))
    found += [Finding(source.name, where, token) for where, token in scan_c(translate(source))]
    return found


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Check that _kernel may run in a handler.")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    parser.add_argument("file", nargs="*", type=Path, help="default: all of _kernel")
    chosen = parser.parse_args()
    modules = chosen.file or sorted(KERNEL.glob("*.pyx"))
    found = [finding for module in modules for finding in check(module)]
    if not chosen.file:
        for shared in [*SHARED, *sorted(KERNEL.glob("*.pxd"))]:
            found += scan_source(shared, shared.read_text())
    if chosen.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1))
    else:
        for finding in found:
            print(finding)
        print(f"kernel side: {len(modules)} modules, {len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
