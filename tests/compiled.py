"""Build Cython source as a user of realmem would, and C for tests."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import realmem as rm


def build(folder: Path, name: str, source: str) -> ModuleType:
    """Compile and import a module; skips where there is no C compiler."""
    (folder / f"{name}.pyx").write_text(source)
    compiler = c_compiler()
    target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    for command in (
        [sys.executable, "-m", "cython", "-3", "-Werror", "-I", rm.get_include(), f"{name}.pyx"],
        [*compiler, "-O2", "-shared", "-fPIC", "-I", sysconfig.get_paths()["include"],
         f"{name}.c", "-o", str(target)],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    spec = importlib.util.spec_from_file_location(name, target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_library(folder: Path, source: Path) -> Path:
    """Compile a C file to a shared library, for ctypes; skips where there is no C compiler."""
    target = folder / f"{source.stem}.so"
    done = subprocess.run(
        [*c_compiler(), "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread",
         str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def c_compiler() -> list[str]:
    """Return the compiler that Python was built with, as a command, or ``cc``."""
    named = shlex.split(sysconfig.get_config_var("CC") or "cc")
    for compiler in (named, ["cc"]):
        if shutil.which(compiler[0]) is not None:
            return compiler
    pytest.skip("no C compiler")
