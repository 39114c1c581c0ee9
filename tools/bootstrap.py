"""
Make the virtual environment that everything else runs in.

    python3 tools/bootstrap.py --venv .venv            system packages, venv, build, stamp
    .venv/bin/python tools/bootstrap.py --only lint    one more extra of pyproject.toml

Runs on a bare Python: standard library only.  System features come first, so that a machine
that lacks one is left untouched.  The stamp (DIR/.realmem, holding the checkout's path) is
written last: a virtual environment that failed half-way leaves its folder, not its stamp.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):         # noqa: UP036  (this file is what tells)
    sys.exit(f"realmem: needs Python 3.10 or newer, and {sys.executable} is "
             f"{sys.version_info[0]}.{sys.version_info[1]}; name another: make PYTHON=...")

import argparse
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import sysdeps

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".realmem"

# Run by the venv's Python: tomllib came with 3.11, pip has carried tomli for 3.10.
READ_PYPROJECT = """
import json, sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
json.dump(tomllib.load(open(sys.argv[1], "rb")), sys.stdout)
"""


def say(what: str) -> None:
    """Tell the person what takes the time."""
    print(f"realmem: {what}", file=sys.stderr, flush=True)


def call(argv: list[str], path_first: Path | None = None) -> None:
    """Run a command that must succeed."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    if path_first:
        env["PATH"] = f"{path_first}{os.pathsep}{env.get('PATH', os.defpath)}"
        # meson would remember the bare name, and rebuilding on import knows no PATH of ours
        env["CYTHON"] = shlex.quote(str(path_first / "cython"))
    done = subprocess.run(argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"realmem: failed with status {done.returncode}: {' '.join(argv)}")


def make_venv(venv: Path) -> bool:
    """Make venv unless a working one of this Python version is there; tell whether it was made."""
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(venv / "bin/python"), "-c", probe], capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0 and done.stdout.strip() == sysdeps.PYTHON_VERSION:
            return False
    except OSError:
        pass
    say(f"making {venv}")
    call([sys.executable, "-m", "venv", "--clear", str(venv)])
    return True


def requirements(venv: Path, groups: list[str]) -> list[str]:
    """List what pyproject.toml asks for: "build", "run" or the name of an extra."""
    done = subprocess.run([str(venv / "bin/python"), "-c", READ_PYPROJECT,
                           str(ROOT / "pyproject.toml")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"realmem: cannot read pyproject.toml: {done.stderr}")
    config = json.loads(done.stdout)
    known = {"build": [*config["build-system"]["requires"], "ninja"],
             "run": config["project"]["dependencies"],
             **config["project"]["optional-dependencies"]}
    return [line for group in groups for line in known[group]]


def pip_install(venv: Path, *words: str) -> None:
    """Run pip in venv, with its build tools found first."""
    call([str(venv / "bin/python"), "-m", "pip", "install", "-q", *words],
         path_first=venv / "bin")


def bootstrap(venv: Path) -> None:
    """Bring venv up, with realmem built into it as an editable install."""
    problem = sysdeps.ensure(sysdeps.BUILD)
    if problem:
        sys.exit(f"realmem: {problem}")
    stamp = venv / STAMP
    fresh = make_venv(venv)
    moved = stamp.is_file() and stamp.read_text().strip() != str(ROOT)
    if fresh or moved:
        # meson remembers absolute paths of the tools and of the checkout
        for build in (ROOT / "build").glob("cp*"):
            shutil.rmtree(build)
    say("installing what the build, the report and the tests need")
    pip_install(venv, *requirements(venv, ["build", "run", "test"]))
    say("building")
    pip_install(venv, "--no-build-isolation", "--no-deps", "-e", str(ROOT))
    stamp.write_text(f"{ROOT}\n")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Make the virtual environment.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--venv", type=Path, help="make this one and build realmem into it")
    what.add_argument("--only", nargs="+", metavar="EXTRA",
                      help="install extras of pyproject.toml into the venv of this Python")
    chosen = parser.parse_args()
    if chosen.venv:
        bootstrap(ROOT / chosen.venv)
    else:
        venv = Path(sys.prefix)
        pip_install(venv, *requirements(venv, chosen.only))


if __name__ == "__main__":
    main()
