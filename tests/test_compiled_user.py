"""The README's example for compiled users, built as they would build it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import realmem as rm

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    text = re.search(r"<!-- example\.pyx -->\n```cython\n(.*?)```\n", README.read_text(), re.S)[1]
    folder = tmp_path_factory.mktemp("example")
    (folder / "example.pyx").write_text(text)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler")
    target = folder / f"example{sysconfig.get_config_var('EXT_SUFFIX')}"
    for command in (
        [sys.executable, "-m", "cython", "-3", "-Werror", "-I", rm.get_include(), "example.pyx"],
        [*compiler, "-O2", "-shared", "-fPIC", "-I", sysconfig.get_paths()["include"],
         "example.c", "-o", str(target)],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    spec = importlib.util.spec_from_file_location("example", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs(example):
    with rm.Machine(memory="16M") as machine:
        cache = machine.kmem_cache_create("mine", 96, flags=rm.SLAB.NO_MERGE)
        assert example.churn(cache, 100000) == 100000
        assert cache.num_slabs == 1
        cache.shrink()
        assert cache.num_objs == 0
        for size in (1, 100, 8192, 100000):
            assert example.copy(machine.core, b"x" * size) == b"x" * size
        machine.check()


def test_what_compiled_code_allocated_python_may_free(example):
    with rm.Machine(memory="16M") as machine:
        cache = machine.kmem_cache_create("mine", 96)
        with machine.inject("page_alloc", probability=1):
            assert example.churn(cache, 5) == 0
        assert example.churn(cache, 5) == 5
        machine.check()


def test_a_closed_machine_has_no_core():
    machine = rm.Machine(memory="16M")
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.core
