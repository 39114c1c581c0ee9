"""The command line: `realmem topology`, and what every command does alike."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from realmem import host
from realmem.cli import main

REALMEM = [sys.executable, "-m", "realmem"]


def test_topology_names_every_node() -> None:
    done = CliRunner().invoke(main, ["topology"])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    for node in host.nodes():
        assert f"{node.id:>4}" in done.output
        assert node.kind in done.output
    assert "What realmem.Machine() uses" in done.output


def test_topology_json_is_json_alone() -> None:
    done = CliRunner().invoke(main, ["topology", "--json"])
    assert done.exit_code == 0
    record = json.loads(done.output)
    assert [node["id"] for node in record["nodes"]] == [node.id for node in host.nodes()]
    assert record["simulated_nodes"]


@pytest.mark.parametrize("errno", ["EPERM", "ENOSYS"])
def test_topology_where_everything_is_refused(refusing: Any, errno: str) -> None:
    done = refusing([*REALMEM, "topology"], errno=errno)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"no: {errno}" in done.stdout


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_topology_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = CliRunner().invoke(main, ["topology"])
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= int(columns)
    assert "…" not in done.output


@pytest.mark.parametrize(("arguments", "status"), [
    (["--version"], 0), (["--help"], 0), (["topology", "--help"], 0),
    ([], 2), (["nonsense"], 2), (["topology", "--nonsense"], 2), (["topology", "extra"], 2),
])
def test_exit_status(arguments: list[str], status: int) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == status


def test_an_error_is_one_line_on_stderr(python: Any) -> None:
    done = python("""
import ctypes.util
ctypes.util.find_library = lambda name: None
from realmem.cli import main
main(["topology"])
""")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("realmem: libnuma.so.1 is not installed")


def test_bad_usage_is_one_line_on_stderr(python: Any) -> None:
    done = python("from realmem.cli import main; main(['topology', '--nonsense'])")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("words", [["topology", "--json"], ["topology"], ["bench", "--help"]])
def test_a_closed_pipe_is_quiet(python: Any, words: list[str]) -> None:
    done = python(f"""
import os, subprocess, sys
reader, writer = os.pipe()
os.close(reader)
done = subprocess.run([sys.executable, "-m", "realmem", *{words!r}], stdout=writer,
                      stderr=subprocess.PIPE)
print(done.returncode, done.stderr)
""")
    assert done.stdout == "1 b''\n"


@pytest.mark.parametrize("words", ["topology", "topology --json", "--help", "bench --help"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&-"])
def test_a_closed_output_is_one_line(python: Any, words: str, closed: str) -> None:
    done = python(f"""
import subprocess, sys
done = subprocess.run(["sh", "-c", sys.executable + " -m realmem {words} {closed}"],
                      stdin=subprocess.DEVNULL, capture_output=True)
print(done.returncode, done.stdout, done.stderr)
""")
    said = b"" if "2>&-" in closed else b"realmem: standard output is closed\n"
    assert done.stdout == f"1 b'' {said}\n"


@pytest.mark.parametrize("words", ["topology", "--help"])
def test_a_full_disk_is_one_line(python: Any, words: str) -> None:
    done = python(f"""
import subprocess, sys
done = subprocess.run([sys.executable, "-m", "realmem", {words!r}], stdout=open("/dev/full", "w"),
                      stderr=subprocess.PIPE)
print(done.returncode, done.stderr)
""")
    assert done.stdout == "1 b'realmem: No space left on device\\n'\n"


def test_help_does_not_load_what_commands_need(python: Any) -> None:
    done = python("""
import sys
from realmem.cli import main
try:
    main(["topology", "--help"])
except SystemExit:
    pass
print([name for name in ("numpy", "rich.console", "numa", "psutil") if name in sys.modules])
""")
    assert done.stdout.endswith("[]\n"), done.stderr
