"""What set-up says and does when the system lacks something; nothing is really installed."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def sysdeps(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("sysdeps")
    monkeypatch.setattr(module, "PYTHON_IS_DISTRIBUTIONS", True)
    return module


@pytest.fixture
def lacking(sysdeps, monkeypatch):
    """A machine with apt-get that lacks two features, and a record of what was installed."""
    here = {"libnuma": False, "compiler": False}
    features = [
        sysdeps.Feature(lambda: here["libnuma"], "libnuma.so.1", ("libnuma1",),
                        ("numactl-libs",)),
        sysdeps.Feature(lambda: here["compiler"], "a C compiler that links",
                        ("gcc", "libc6-dev"), ("gcc", "glibc-devel")),
        sysdeps.Feature(lambda: True, "what is there", ("never",), ("never",)),
    ]
    installed = []

    def install(names):
        installed.extend(names)
        here.update(libnuma=True, compiler=True)
        return True
    monkeypatch.setattr(sysdeps, "apt_install", install)
    monkeypatch.setattr(sysdeps.shutil, "which", lambda name: f"/usr/bin/{name}")
    return features, installed


def test_root_installs_what_is_missing_and_nothing_else(sysdeps, lacking, monkeypatch):
    features, installed = lacking
    monkeypatch.setattr(sysdeps.os, "geteuid", lambda: 0)
    assert sysdeps.ensure(features) is None
    assert installed == ["libnuma1", "gcc", "libc6-dev"]


@pytest.mark.parametrize("uid, change", [(1000, True), (0, False)])
def test_others_are_told_the_one_line(sysdeps, lacking, monkeypatch, uid, change):
    features, installed = lacking
    monkeypatch.setattr(sysdeps.os, "geteuid", lambda: uid)
    said = sysdeps.ensure(features, change=change)
    assert installed == []
    assert "libnuma.so.1, a C compiler that links" in said
    command, = [line for line in said.splitlines() if line.startswith("sudo ")]
    assert "apt-get update && sudo apt-get install -y libnuma1 gcc libc6-dev" in command
    assert "dnf install -y numactl-libs gcc glibc-devel" in command


def test_packages_that_do_not_help_are_not_success(sysdeps, monkeypatch):
    monkeypatch.setattr(sysdeps.os, "geteuid", lambda: 0)
    monkeypatch.setattr(sysdeps.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysdeps, "apt_install", lambda names: True)
    broken = sysdeps.Feature(lambda: False, "a thing", ("thing",), ("thing",))
    assert "lacks a thing" in sysdeps.ensure([broken])


def test_a_foreign_python_gets_no_package_names(sysdeps, monkeypatch):
    monkeypatch.setattr(sysdeps, "PYTHON_IS_DISTRIBUTIONS", False)
    headers = sysdeps.Feature(lambda: False, "Python.h", ("python3-dev",), (), of_python=True)
    said = sysdeps.ensure([headers])
    assert "not the distribution's" in said and "PYTHON=" in said
    assert "install" not in said


def test_this_machine_has_what_built_it(sysdeps):
    for feature in sysdeps.BUILD:
        assert feature.test(), feature.fact


def test_a_compiler_that_cannot_link_is_none(sysdeps, monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert not sysdeps.has_compiler()


def test_guest_kernels_need_9p_and_come_newest_first(sysdeps, tmp_path):
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    for version, names in [("6.1.0-9", "fs/9p/9p.ko.xz:\nnet/9p/9pnet_virtio.ko.xz:\n"),
                           ("6.1.0-56", "kernel/fs/9p/9p.ko:\nkernel/net/9p/9pnet_virtio.ko:\n"),
                           ("6.12.1", "kernel/fs/ext4/ext4.ko:\n")]:
        (boot / f"vmlinuz-{version}").write_text("")
        (modules / version).mkdir(parents=True)
        (modules / version / "modules.dep").write_text(names)
    (boot / "vmlinuz-7.0").write_text("")       # without modules
    found = [kernel.name for kernel in sysdeps.guest_kernels(boot, modules)]
    assert found == ["vmlinuz-6.1.0-56", "vmlinuz-6.1.0-9"]


def test_an_old_python_is_told(tmp_path):
    """bootstrap.py must get as far as its own message on a Python that cannot run the rest."""
    code = ("import sys, runpy; sys.version_info = (3, 9, 2, 'final', 0); "
            f"runpy.run_path({str(TOOLS / 'bootstrap.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Python 3.10 or newer" in done.stderr and "Traceback" not in done.stderr
