"""What a sanitizer reports fails the run, and what is left out of its reports has a reason."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BUGS = r"""
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
static int shared;
static void *add(void *to) { for (int i = 0; i < 1000; i++) ++*(volatile int *)to; return 0; }
int race(void)
{
    pthread_t a, b;
    pthread_create(&a, 0, add, &shared);
    pthread_create(&b, 0, add, &shared);
    pthread_join(a, 0);
    pthread_join(b, 0);
    return shared;
}
int overflow(int n) { volatile int most = INT_MAX; return most + n; }
int beyond(int n) { char *p = malloc(10); int c = ((volatile char *)p)[n]; free(p); return c; }
int fine(int n) { return n; }
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("test_sanitized")


@pytest.mark.parametrize(
    "kind, call, reported",
    [("address", "beyond(10)", "heap-buffer-overflow"),
     ("address", "overflow(1)", "signed integer overflow"),
     ("address", "fine(1)", None),
     ("thread", "race()", "data race"),
     ("thread", "fine(1)", None)],
)
def test_reports_of_each_kind_are_found(tool, tmp_path, kind, call, reported):
    """A C library with a bug of each kind, loaded into a Python that is not instrumented."""
    sanitizer = tool.SANITIZERS[kind]
    problem = tool.problem_with(sanitizer)
    if problem:
        pytest.skip(problem)
    (tmp_path / "reports").mkdir()
    (tmp_path / "bugs.c").write_text(BUGS)
    library = tmp_path / "bugs.so"
    subprocess.run([*tool.sysdeps.compiler(), "-g", f"-fsanitize={sanitizer.flags}", "-shared",
                    "-fPIC", "-pthread", str(tmp_path / "bugs.c"), "-o", str(library)], check=True)
    env = tool.environment(kind, tmp_path)
    words = tool.launcher(Path(sys.executable), env, "ctypes")
    if words is None:
        pytest.skip(f"no process starts with {env['LD_PRELOAD']}")
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).{call}"
    done = subprocess.run([*words, sys.executable, "-c", code], env=env, capture_output=True,
                          text=True)
    found = tool.reports(tmp_path)
    if reported is None:
        assert done.returncode == 0 and not found
    else:
        assert done.returncode != 0
        assert any(reported in line for line in [*found, *done.stderr.splitlines()]), done.stderr


def test_options_of_the_caller_come_last(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "runtime", lambda sanitizer: Path("/lib/libtsan.so"))
    monkeypatch.setenv("TSAN_OPTIONS", "history_size=7")
    env = tool.environment("thread", tmp_path)
    assert env["TSAN_OPTIONS"].endswith(":history_size=7")
    assert f"suppressions={ROOT / 'tools/thread_sanitizer.txt'}" in env["TSAN_OPTIONS"]
    assert env["LD_PRELOAD"] == "/lib/libtsan.so"


def test_the_tests_that_are_chosen_exist(tool):
    for sanitizer in tool.SANITIZERS.values():
        for name in (*sanitizer.tests, *sanitizer.without):
            file, _, test = name.partition("::")
            path = ROOT / "tests" / file
            assert path.exists() and f"def {test}" in (path.read_text() if test else "def ")


def test_what_is_suppressed_has_a_reason_and_is_there():
    """Each pattern follows a comment, and names a function of a module."""
    blocks = (ROOT / "tools/thread_sanitizer.txt").read_text().split("\n\n")
    for block in blocks[1:]:
        lines = block.strip().splitlines()
        assert lines[0].startswith("# "), block
        patterns = [line for line in lines if not line.startswith("#")]
        assert patterns, block
        for pattern in patterns:
            module = re.fullmatch(r"race_top:(_kernel/\w+)\.cpython", pattern)
            if module:
                assert (ROOT / "cython/realmem" / f"{module[1]}.pyx").exists(), pattern
                continue
            if pattern.startswith("race_top:rm_"):      # C in a declaration file
                function = pattern.removeprefix("race_top:")
                assert any(f" {function}(" in path.read_text()
                           for path in (ROOT / "cython").rglob("*.pxd")), pattern
                continue
            scope, name = names_of(pattern.removeprefix("race_top:"))
            sources = "".join(path.read_text() for path in (ROOT / "cython").joinpath(
                *scope[:2]).glob(f"{scope[2]}.p*"))
            assert all(re.search(rf"\b{one}\b", sources) for one in (*scope[3:], name)), pattern


def names_of(symbol):
    """Take Cython's name of a function apart: each part of its scope has its length in front."""
    rest = re.sub(r"^__pyx_p?f_", "", symbol)
    scope = []
    while found := re.match(r"(\d+)", rest):
        start = found.end()
        end = start + int(found[1])
        scope.append(rest[start:end])
        rest = rest[end + 1:]
    return (scope, scope.pop()) if rest == "__get__" else (scope, rest)
