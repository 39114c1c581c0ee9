"""
Show which test asserts which behaviour of Linux.

    .venv/bin/python tools/conformance.py [--area WM] [--json]

tests/conformance/ledger.csv lists the behaviours that this part of realmem answers for, one a
line: its id, what is expected of it (`test`; `later`: it could be built and is not yet;
`unreachable`: it needs a part of realmem that does not exist; `n/a`), the behaviour in short,
and the reason unless it is `test`.  A test names the lines it asserts:

    @pytest.mark.conformance("WM-01", "WM-04")
    def test_...

The tests are read, not run.  Exits 1 when a line has no test, or a test an unknown line.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
LEDGER = TESTS / "conformance" / "ledger.csv"
STATUSES = ("test", "later", "unreachable", "n/a")


def read_ledger(path: Path = LEDGER) -> dict[str, dict[str, str]]:
    """Read the ledger: id to its row."""
    with path.open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def marked_tests(tests: Path = TESTS) -> dict[str, list[str]]:
    """Find the tests that name lines: id to ``file::test``."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            for line in _lines_named_by(node):
                found[line].append(f"{path.relative_to(tests.parent)}::{node.name}")
    return dict(found)


def _lines_named_by(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    return [
        str(arg.value)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == "conformance"
        for arg in decorator.args
        if isinstance(arg, ast.Constant)
    ]


def problems(ledger: dict[str, dict[str, str]], found: dict[str, list[str]]) -> list[str]:
    """Say what does not agree between ledger and tests."""
    wrong = [
        f"{line}: {tests[0]} names it, the ledger does not have it"
        for line, tests in found.items()
        if line not in ledger
    ]
    for line, row in ledger.items():
        if row["status"] not in STATUSES:
            wrong.append(f"{line}: no such status: {row['status']}")
        elif row["status"] == "test" and line not in found:
            wrong.append(f"{line}: no test asserts it ({row['behaviour']})")
        elif row["status"] != "test" and not row["reason"]:
            wrong.append(f"{line}: {row['status']}, and no reason")
        elif row["status"] != "test" and line in found:
            wrong.append(f"{line}: {row['status']}, and yet {found[line][0]} asserts it")
    return wrong


def left_out(ledger: dict[str, dict[str, str]]) -> dict[str, tuple[int, int]]:
    """
    Count for each area the lines left out, and the lines it could have.

    What needs a missing part of realmem is in neither.
    """
    areas: dict[str, tuple[int, int]] = {}
    for line, row in ledger.items():
        if row["status"] != "unreachable":
            area = line.partition("-")[0]
            out, all_lines = areas.get(area, (0, 0))
            areas[area] = out + (row["status"] != "test"), all_lines + 1
    return areas


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--area", help="only lines such as WM-01 for WM")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    options = parser.parse_args(argv)
    ledger, found = read_ledger(), marked_tests()
    rows = [
        row
        for line, row in ledger.items()
        if not options.area or line.startswith(options.area + "-")
    ]
    if options.json:
        print(json.dumps([{**row, "tests": found.get(row["id"], [])} for row in rows], indent=1))
    else:
        for row in rows:
            print("{id}  {status:<11} {behaviour}".format_map(row))
            for test in found.get(row["id"], [row["reason"]]):
                print(f"       {test}")
    wrong = problems(ledger, found)
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
