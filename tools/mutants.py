"""
Break the allocators on purpose and see that their tests notice.

    .venv/bin/python tools/mutants.py [--suite NAME] [--only NAME]... [--fast] [--list] [--json]

Each mutant is one textual change to a source under cython/realmem or realmem.  What has to be
compiled is compiled apart from the build tree and put into a copy of the package; there its
suite's tests run in a child process, which must fail, die or hang.  The unchanged sources are
run first and must pass.  Takes some seconds of one CPU a mutant.  Exits 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutants_cow import COW
from mutants_mm import MM
from mutants_pages import PAGES
from mutants_runs import RUNS
from mutants_slab import SLAB
from mutants_thp import THP
from mutation import Mutant, Suite

ROOT = Path(__file__).resolve().parent.parent
CYTHON = ROOT / "cython"
SUITES = {"pages": PAGES, "slab": SLAB, "mm": MM, "thp": THP, "runs": RUNS, "cow": COW}
# A mutant that takes this many times as long as the unchanged allocator hangs.
PATIENCE = 4
# The editable install's finder would find the unchanged modules first.
CHILD = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__]
sys.path.insert(0, {overlay!r})
import realmem
assert realmem.__file__.startswith({overlay!r}), realmem.__file__
import pytest
sys.exit(pytest.main({args!r}))
"""


def source_of(mutant: Mutant, root: Path = ROOT) -> Path:
    """Give the file that a mutant changes."""
    return root / ("realmem" if mutant.file.endswith(".py") else "cython/realmem") / mutant.file


def mutate(mutant: Mutant, root: Path = ROOT) -> str:
    """Give the changed source; ValueError if the text does not stand there once."""
    text = source_of(mutant, root).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: stands {found} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def overlay(where: Path) -> Path:
    """Copy the package with its compiled modules to a folder, and the sources beside it."""
    package = where / "realmem"
    shutil.copytree(ROOT / "realmem", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CYTHON, where / "cython")
    for source in sorted((CYTHON / "realmem").rglob("*.pyx")):
        name = ".".join(source.relative_to(CYTHON).with_suffix("").parts)
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise FileNotFoundError(f"{name} is not built: make build")
        folder = package.joinpath(*name.split(".")[1:-1])
        shutil.copy2(spec.origin, folder / Path(spec.origin).name)
    return where


def compile_module(where: Path, module: str) -> None:
    """Compile one kernel-side module of an overlay in place."""
    source = where / "cython" / "realmem" / "_kernel" / f"{module}.pyx"
    out = where / f"{module}.c"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    # A new file: the old one may be mapped by a child that hangs.
    target = where / "realmem" / "_kernel" / f"{module}{suffix}"
    target.unlink(missing_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    for command in (
        [sys.executable, "-m", "cython", "-3", "-I", str(where / "cython"), str(source),
         "-o", str(out)],
        [*compiler, "-O1", "-shared", "-fPIC", "-w", "-std=gnu11", "-fno-strict-aliasing",
         "-ftls-model=initial-exec", "-DNDEBUG", "-I", sysconfig.get_paths()["include"],
         str(out), "-o", str(target)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{module} does not compile:\n{done.stdout}{done.stderr}")


def run_tests(where: Path, tests: Sequence[str], timeout: float | None = None) -> str | None:
    """Run the tests on an overlay; give what noticed, None when all passed."""
    args = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=line",
            "-o", "addopts=--import-mode=importlib", *tests]
    code = CHILD.format(overlay=str(where), args=args)
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env={**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1",
                                   "REALMEM_HOST_SHRINK": "0"})
    except subprocess.TimeoutExpired:
        return "it hangs"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"it dies of signal {-done.returncode}"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else f"exit status {done.returncode}: {done.stderr[-500:]}"


def judge(mutant: Mutant, where: Path, tests: Sequence[str], timeout: float) -> str | None:
    """Build a mutant in an overlay, test it, put the overlay right again."""
    source = source_of(mutant, where)
    compiled = () if source.suffix == ".py" else (source.stem,)
    modules = mutant.modules or compiled
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {module: where / "realmem" / "_kernel" / f"{module}{suffix}" for module in modules}
    before = source.read_text()
    kept = {module: path.read_bytes() for module, path in built.items()}
    try:
        source.write_text(mutate(mutant, where))
        for module in modules:
            compile_module(where, module)
        return run_tests(where, tests, timeout)
    finally:
        source.write_text(before)
        for module, path in built.items():
            path.unlink(missing_ok=True)
            path.write_bytes(kept[module])


def run_suite(suite: Suite, chosen: Sequence[Mutant], where: Path,
              quiet: bool) -> list[dict[str, str | None]]:
    """
    Run mutants of one suite.

    :raises RuntimeError: the unchanged allocator fails.
    """
    begin = time.monotonic()
    blame = run_tests(where, suite.tests)
    timeout = max(30.0, PATIENCE * (time.monotonic() - begin))
    if blame is not None:
        raise RuntimeError(f"the unchanged allocator fails: {blame}")
    results: list[dict[str, str | None]] = []
    for mutant in chosen:
        begin = time.monotonic()
        try:
            noticed = judge(mutant, where, suite.tests, timeout)
        except RuntimeError as why:         # the source went on without it
            print(f"BROKEN   {mutant.name}: {why}", file=sys.stderr, flush=True)
            results.append({"mutant": mutant.name, "noticed": None})
            continue
        results.append({"mutant": mutant.name, "noticed": noticed})
        if not quiet:
            print(f"{'ok      ' if noticed else 'SURVIVED'} {mutant.name}: "
                  f"{noticed} ({time.monotonic() - begin:.0f} s)", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--suite", choices=SUITES, help="only these")
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; repeatable")
    parser.add_argument("--fast", action="store_true", help="one mutant of each kind")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--json", action="store_true", help="one object for all results")
    options = parser.parse_args(argv)
    suites = [SUITES[options.suite]] if options.suite else list(SUITES.values())
    chosen = {suite: [m for m in suite.mutants if (not options.only or m.name in options.only)
                      and (not options.fast or m.name in suite.fast)] for suite in suites}
    if options.list or not any(chosen.values()):
        print("\n".join(mutant.name for suite in suites for mutant in suite.mutants))
        return 0 if options.list else 2
    results = []
    with tempfile.TemporaryDirectory(prefix="realmem-mutants-") as folder:
        where = overlay(Path(folder))
        compile_module(where, "buddy")
        try:
            for suite, some in chosen.items():
                if some:
                    results += run_suite(suite, some, where, options.json)
        except RuntimeError as why:
            print(why, file=sys.stderr)
            return 1
    survivors = [result["mutant"] for result in results if not result["noticed"]]
    if options.json:
        print(json.dumps({"results": results, "survivors": survivors}, indent=1))
    else:
        print(f"{len(results) - len(survivors)} of {len(results)} mutants noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
