"""
Run tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, or ThreadSanitizer.

    make test-asan, make test-tsan
    or: .venv/bin/python tools/test_sanitized.py [--no-build] address|thread [-- ARGS]

realmem is built as a wheel with the sanitizer and with the kernel side's own checks, and installed
into an environment of its own under build/; Python itself stays as it is, so the sanitizer's
run-time library is preloaded.  ARGS go to pytest, in place of the tests that are listed here.
What the sanitizer reports goes to files, one for each process, and any report fails the run, even
where the test that caused it passed; undefined behaviour ends the process.  Windows are of 1 GiB,
since a sanitizer keeps notes of every address.  Where the compiler has no such library, the run
counts as skipped (status 0).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import bootstrap
import sysdeps

HERE = Path(__file__).resolve().parent


class Sanitizer(NamedTuple):
    """A build, and how its tests run."""

    flags: str                      # as -fsanitize= has them
    runtime: str                    # the library that must come first
    options: dict[str, dict[str, str]]      # by environment variable
    env: dict[str, str]
    tests: tuple[str, ...]          # under tests/
    without: tuple[str, ...]        # but these
    args: tuple[str, ...]           # for pytest


OURS = {
    "handle_segv": "0",                 # SIGSEGV is realmem's,
    "handle_sigbus": "0",               # and SIGBUS with userfaultfd
}

SANITIZERS = {
    "address": Sanitizer(
        flags="address,undefined",
        runtime="libasan.so",
        options={
            "ASAN_OPTIONS": {
                **OURS,
                "allow_user_segv_handler": "1",
                "use_sigaltstack": "0",         # so is the stack it is served on
                "detect_leaks": "0",            # Python leaves much to the end of the process
                "detect_stack_use_after_return": "1",
            },
            # Beside the other, gcc's writes to stderr only: so the process must end.
            "UBSAN_OPTIONS": {"halt_on_error": "1", "print_stacktrace": "1"},
        },
        env={"PYTHONMALLOC": "malloc"},         # so that each object is its own block
        tests=("fault", "calls", "page_alloc", "slab_debug", "test_access.py", "test_buddy.py",
               "test_collapse.py", "test_fork_cow.py", "test_kmalloc.py", "test_krealloc.py",
               "test_machine_threads.py", "test_mmap_memory.py", "test_own_caches.py",
               "test_page_alloc_model.py", "test_pcp.py", "test_pgtable.py", "test_pin.py",
               "test_process.py", "test_quicklist.py", "test_runs.py", "test_slab.py",
               "test_slab_model.py", "test_thp.py", "test_vma_tree.py", "test_vmalloc.py"),
        # It takes every host VMA, and the sanitizer finds none for itself.
        without=("fault/test_storm.py::test_at_the_hosts_limit_of_vmas",),
        args=("-n", "auto", "-m", "not slow or storm"),
    ),
    "thread": Sanitizer(
        flags="thread",
        runtime="libtsan.so",
        options={
            "TSAN_OPTIONS": {
                **OURS,
                "report_signal_unsafe": "0",    # Python's own handlers
                "die_after_fork": "0",          # multiprocessing, subprocess, os.fork()
                "history_size": "4",
            },
        },
        env={},
        tests=("fault", "page_alloc/test_frees.py", "test_buddy.py", "test_collapse.py",
               "test_machine_threads.py", "test_pcp.py", "test_process.py", "test_quicklist.py",
               "test_runs.py", "test_slab.py", "test_slab_reentry.py", "test_vmalloc.py"),
        # A thousand windows have no room beside the notes.
        without=("fault/test_handler.py::test_a_thousand_processes_come_and_go",),
        args=("-n", "auto", "-m", "not slow or storm", "--soak", "2"),     # it is slow, too
    ),
}


def stage_folder(kind: str) -> Path:
    """Return where the build, its environment and its reports lie."""
    return bootstrap.ROOT / "build" / {"address": "asan", "thread": "tsan"}[kind]


def problem_with(sanitizer: Sanitizer) -> str | None:
    """Tell why the compiler cannot make such a build, or None."""
    if not sysdeps.compiles("int main(void) { return 0; }\n", f"-fsanitize={sanitizer.flags}"):
        return (f"{' '.join(sysdeps.compiler())} links no program with "
                f"-fsanitize={sanitizer.flags} that runs")
    if runtime(sanitizer) is None:
        return f"{' '.join(sysdeps.compiler())} has no shared {sanitizer.runtime}"
    return None


def runtime(sanitizer: Sanitizer) -> Path | None:
    """Find the sanitizer's library, as the compiler does."""
    done = subprocess.run([*sysdeps.compiler(), f"-print-file-name={sanitizer.runtime}"],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = Path(done.stdout.strip())
    return found.resolve() if found.is_absolute() and found.exists() else None


def prepare(sanitizer: Sanitizer, stage: Path) -> Path:
    """Build realmem, and install it into an environment of its own; return its `bin`."""
    shutil.rmtree(stage / "wheel", ignore_errors=True)
    stage.mkdir(parents=True, exist_ok=True)
    bootstrap.say(f"building with -fsanitize={sanitizer.flags}")
    setup = ["buildtype=debugoptimized", f"b_sanitize={sanitizer.flags}", "b_lundef=false",
             "debug_vm=true"]
    bootstrap.call([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation",
                    "--no-deps", f"-Cbuild-dir={stage / 'meson'}",
                    *(f"-Csetup-args=-D{option}" for option in setup),
                    "-w", str(stage / "wheel"), str(bootstrap.ROOT)],
                   path_first=Path(sys.executable).parent)
    wheel, = (stage / "wheel").glob("*.whl")
    venv = stage / "venv"
    bootstrap.make_venv(venv)
    # Some tests compile modules of their own.
    bootstrap.pip_install(venv, *bootstrap.requirements(venv, ["build", "run", "test"]))
    bootstrap.pip_install(venv, "--no-deps", "--force-reinstall", str(wheel))
    return venv / "bin"


def environment(kind: str, stage: Path) -> dict[str, str]:
    """Return what the tests' processes, and their children, find in their environment."""
    sanitizer = SANITIZERS[kind]
    env = {**os.environ, **sanitizer.env, "LD_PRELOAD": str(runtime(sanitizer)),
           "REALMEM_TEST_WINDOW": "1G"}
    suppressions = HERE / f"{kind}_sanitizer.txt"
    for name, options in sanitizer.options.items():
        chosen = dict(options)
        if name != "UBSAN_OPTIONS":
            chosen["log_path"] = str(stage / "reports" / name.split("_")[0].lower())
            if suppressions.exists():
                chosen["suppressions"] = str(suppressions)
        given = os.environ.get(name, "")
        env[name] = ":".join([*(f"{key}={value}" for key, value in chosen.items()),
                              *([given] if given else [])])
    return env


def launcher(python: Path, env: dict[str, str], module: str = "realmem") -> list[str] | None:
    """Return what stands before a command so that a module loads, or None: nothing helps."""
    # ThreadSanitizer wants its own places; a host that scatters mappings widely takes them.
    for words in ([], ["setarch", "-R"]):
        try:
            done = subprocess.run([*words, str(python), "-c", f"import {module}"], env=env,
                                  cwd=python.parent, capture_output=True,
                                  stdin=subprocess.DEVNULL)
        except OSError:
            continue
        if done.returncode == 0:
            return words
    return None


def reports(stage: Path) -> dict[str, list[str]]:
    """Collect the reports: by their first telling line, the files that have it."""
    found: dict[str, list[str]] = {}
    for path in sorted((stage / "reports").glob("*")):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
        # One that ends for want of memory has no summary.
        telling = ([line for line in lines if line.startswith("SUMMARY:")]
                   or [line for line in lines if "ERROR" in line][:1])
        for line in telling:
            found.setdefault(line, []).append(str(path))
    return found


def run_tests(kind: str, bin_folder: Path, stage: Path, args: list[str]) -> int:
    """Run pytest; return its status, or 1 where it passed and there are reports."""
    sanitizer = SANITIZERS[kind]
    shutil.rmtree(stage / "reports", ignore_errors=True)
    shutil.rmtree(stage / "empty", ignore_errors=True)
    (stage / "reports").mkdir()
    (stage / "empty").mkdir()           # children import what is installed, not the checkout
    env = environment(kind, stage)
    words = launcher(bin_folder / "python", env)
    if words is None:
        print(f"test-{stage.name}: FAILED: realmem cannot be imported under "
              f"{env['LD_PRELOAD']}")
        return 1
    shutil.rmtree(stage / "reports")
    (stage / "reports").mkdir()
    root = bootstrap.ROOT
    chosen = args or [*sanitizer.args, *(str(root / "tests" / test) for test in sanitizer.tests),
                      *(f"--deselect=tests/{test}" for test in sanitizer.without)]
    status = subprocess.run(
        [*words, str(bin_folder / "pytest"), "-c", str(root / "pyproject.toml"),
         f"--rootdir={root}", "-p", "no:cacheprovider", *chosen],
        env=env, cwd=stage / "empty", stdin=subprocess.DEVNULL).returncode
    found = reports(stage)
    for line, files in found.items():
        print(f"test-{stage.name}: REPORTED: {line} ({len(files)} times, as in {files[0]})")
    return status or (1 if found else 0)


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Run tests on a sanitized build.")
    parser.add_argument("kind", choices=sorted(SANITIZERS))
    parser.add_argument("--no-build", action="store_true", help="test what was built before")
    parser.add_argument("args", nargs="*", help="for pytest, in place of the chosen tests")
    chosen = parser.parse_args()
    sanitizer = SANITIZERS[chosen.kind]
    stage = stage_folder(chosen.kind)
    problem = problem_with(sanitizer)
    if problem:
        print(f"test-{stage.name}: skipped: {problem}")
        return 0
    bin_folder = stage / "venv/bin" if chosen.no_build else prepare(sanitizer, stage)
    return run_tests(chosen.kind, bin_folder, stage, chosen.args)


if __name__ == "__main__":
    sys.exit(main())
