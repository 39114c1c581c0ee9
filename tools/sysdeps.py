"""
What realmem needs from the system: test for it, install it, or say how.

Features are tested, never package names: a header that exists, a program that links, a library
that loads.  Package names are only used to answer "and how do I get it?".

    python3 tools/sysdeps.py            what a build and a report need
    python3 tools/sysdeps.py --guest    what `make test-numa` needs on top
    python3 tools/sysdeps.py --check    change nothing, even as root

As root on a system with apt-get, what is missing is installed.  Otherwise the one line that
would do it is printed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"

# The headers and ensurepip of a Python come from whoever made it.
PYTHON_IS_DISTRIBUTIONS = sys.base_prefix == "/usr"


class Feature(NamedTuple):
    """One thing that must work, and the packages that usually bring it."""

    test: Callable[[], bool]
    fact: str
    apt: tuple[str, ...]
    dnf: tuple[str, ...]
    of_python: bool = False


def runs(argv: list[str]) -> bool:
    """Tell whether a command exists and succeeds; its output is dropped."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def compiler() -> list[str]:
    """Return the C compiler that meson will pick, as a command."""
    named = os.environ.get("CC", "").split()
    if named:
        return named
    return [next((cc for cc in ("cc", "gcc", "clang") if shutil.which(cc)), "cc")]


def compiles(source: str, *flags: str, link: bool = True) -> bool:
    """Tell whether the C compiler takes this program and, when linked, it runs."""
    with tempfile.TemporaryDirectory(prefix="realmem-probe-") as where:
        code, result = Path(where, "probe.c"), Path(where, "probe")
        code.write_text(source)
        how = [str(code), "-o", str(result), *flags, *([] if link else ["-c"])]
        return runs([*compiler(), *how]) and (not link or runs([str(result)]))


def has_ensurepip() -> bool:
    """Tell whether this Python can put pip into a new virtual environment."""
    return runs([sys.executable, "-c", "import ensurepip, venv; ensurepip.version()"])


def has_compiler() -> bool:
    """Tell whether C programs compile, link against libc and run."""
    return compiles("#include <stdio.h>\nint main(void) { return printf(\"\") < 0; }\n")


def has_headers() -> bool:
    """Tell whether Python.h is where sysconfig says, complete with its pyconfig.h."""
    paths = sysconfig.get_paths()
    folders = [paths["include"], paths["platinclude"]]
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        return False
    if not has_compiler():
        return True         # the compiler is the fact to report
    flags = [f"-I{folder}" for folder in folders]
    return compiles("#include <Python.h>\nint main(void) { return 0; }\n", *flags, link=False)


def has_libnuma() -> bool:
    """Tell whether the library behind py-libnuma loads."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def guest_kernels(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> list[Path]:
    """List readable kernels that can mount a 9p root, newest first."""
    def has_9p(version: str) -> bool:
        names = Path(modules, version)
        if not names.is_dir():
            return False
        builtin = Path(names, "modules.builtin")
        known = builtin.read_text() if builtin.is_file() else ""
        loadable = Path(names, "modules.dep")
        known += loadable.read_text() if loadable.is_file() else ""
        return all(f"/{name}.ko" in known for name in ("9p", "9pnet_virtio"))

    def number(kernel: Path) -> list[int]:
        return [int(part) for part in "".join(
            c if c.isdigit() else " " for c in kernel.name).split()]

    found = [kernel for kernel in boot.glob("vmlinuz-*")
             if os.access(kernel, os.R_OK) and has_9p(kernel.name.partition("-")[2])]
    return sorted(found, key=number, reverse=True)


def has_static_busybox() -> bool:
    """Tell whether a busybox without an ELF interpreter is there, for the guest's initramfs."""
    for name in ("busybox-static", "busybox.static", "busybox"):
        path = shutil.which(name)
        if path:
            with Path(path).open("rb") as program:
                return b"ld-linux" not in program.read(4096)
    return False


BUILD = [
    Feature(has_compiler, "a C compiler that links", ("gcc", "libc6-dev"),
            ("gcc", "glibc-devel")),
    Feature(has_headers, f"Python.h for {sys.executable}", (f"python{PYTHON_VERSION}-dev",),
            ("python3-devel",), of_python=True),
    Feature(has_ensurepip, f"ensurepip in {sys.executable}", (f"python{PYTHON_VERSION}-venv",),
            ("python3-pip",), of_python=True),
    Feature(has_libnuma, "libnuma.so.1", ("libnuma1",), ("numactl-libs",)),
]

GUEST = [
    Feature(lambda: shutil.which("qemu-system-x86_64") is not None, "qemu-system-x86_64",
            ("qemu-system-x86",), ("qemu-system-x86-core",)),
    Feature(lambda: bool(guest_kernels()), "a readable /boot/vmlinuz-* with 9p modules",
            ("linux-image-amd64",), ("kernel-core", "kernel-modules")),
    Feature(has_static_busybox, "a static busybox", ("busybox-static",), ("busybox",)),
]


def missing(features: list[Feature]) -> list[Feature]:
    """Return the features that do not work."""
    return [feature for feature in features if not feature.test()]


def facts(features: list[Feature]) -> str:
    """Name what is missing, for a message."""
    return ", ".join(feature.fact for feature in features)


def packages(features: list[Feature], tool: str) -> list[str]:
    """Name the packages that bring these features, for apt or dnf."""
    return [name for feature in features
            for name in (feature.apt if tool == "apt" else feature.dnf)]


def command_line(features: list[Feature]) -> str:
    """Return the one line that installs these features, for a person to run."""
    apt = f"sudo apt-get update && sudo apt-get install -y {' '.join(packages(features, 'apt'))}"
    dnf = f"sudo dnf install -y {' '.join(packages(features, 'dnf'))}"
    if shutil.which("apt-get"):
        return f"{apt}    # with dnf: {dnf}"
    return dnf if shutil.which("dnf") else f"{apt}    # or: {dnf}"


def apt_install(names: list[str]) -> bool:
    """Install packages with apt-get, asking nothing."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]

    def apt(*words: str) -> bool:
        done = subprocess.run(["apt-get", *options, *words], env=quiet, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, errors="replace")
        if done.returncode:
            print(done.stdout[-4000:], file=sys.stderr)
        return done.returncode == 0

    apt("update")           # without a network the lists at hand may still do
    return apt("install", "-y", "--no-install-recommends", *names)


def of_foreign_python(features: list[Feature]) -> str | None:
    """Explain what no package brings: parts of a Python that the distribution did not make."""
    lacking = [feature for feature in features if feature.of_python]
    if not lacking or PYTHON_IS_DISTRIBUTIONS:
        return None
    return (f"{sys.executable} is not the distribution's Python and lacks {facts(lacking)}: "
            "no package brings that. Use another, as in: make PYTHON=/usr/bin/python3")


def ensure(features: list[Feature], change: bool = True) -> str | None:
    """
    See to it that these features work.

    :param features: what is needed.
    :param change: whether root may install packages.
    :return: None when everything works, else what is missing and the line to run.
    """
    lacking = missing(features)
    if not lacking:
        return None
    foreign = of_foreign_python(lacking)
    if foreign:
        return foreign
    if change and os.geteuid() == 0 and shutil.which("apt-get"):
        names = packages(lacking, "apt")
        print(f"realmem: installing {' '.join(names)} (for {facts(lacking)})", file=sys.stderr)
        apt_install(names)
        lacking = missing(lacking)
        if not lacking:
            return None
    return f"this machine lacks {facts(lacking)}. Run:\n{command_line(lacking)}"


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="System packages that realmem needs.")
    parser.add_argument("--guest", action="store_true", help="what make test-numa needs on top")
    parser.add_argument("--check", action="store_true", help="install nothing, even as root")
    chosen = parser.parse_args()
    if chosen.guest and platform.machine() != "x86_64":
        print("realmem: guests are x86-64 only", file=sys.stderr)
        return 1
    problem = ensure(GUEST if chosen.guest else BUILD, change=not chosen.check)
    if problem:
        print(f"realmem: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
