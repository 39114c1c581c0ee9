"""
Imports go up only.

    0  realmem.types, compiler, linux       extern declarations, structs, inline arithmetic
    1  realmem._kernel                      what may run in the SIGSEGV handler
    2  realmem._core, realmem._bench        compiled faces and measuring loops
    3  the library in Python                (leaves first: errors, layout)
    4  procfs, trace, ledger, check, bench, replay
    5  report, cli, pytest_plugin

Inside a function a module of layer 3 may reach up to 4 (`machine.check()` loads the checker when
it is called); nothing else may, and no ring of imports may form on any level.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CYTHON = sorted((ROOT / "cython").rglob("*.p[yx][xd]"))
PYTHON = sorted((ROOT / "realmem").rglob("*.py"))

EXTERN = {"realmem.types", "realmem.compiler", "realmem.linux"}
LEAVES = {"realmem.errors", "realmem.layout"}
FOUR = ("procfs", "trace", "ledger", "check", "bench", "replay")
FIVE = ("report", "cli", "pytest_plugin", "__main__")


def module_name(path):
    """Return the dotted name of a source file."""
    top = ROOT / "cython" if path.suffix in (".pyx", ".pxd") else ROOT
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name):
    """Return the layer of a realmem module."""
    if name in EXTERN:
        return 0
    first = name.split(".")[1:2]
    if first and first[0].startswith("_"):
        return {"_kernel": 1, "_core": 2, "_bench": 2, "__main__": 5}[first[0]]
    if first and first[0] in FOUR:
        return 4
    return 5 if first and first[0] in FIVE else 3


def cimports(text):
    """Yield each module that Cython source cimports."""
    for line in text.splitlines():
        found = re.match(r"\s*(?:from\s+(\S+)\s+cimport\b|cimport\s+(\S+))", line)
        if found:
            yield (found[1] or found[2]).rstrip(",")


def imports(path):
    """Yield (module, whether at module level) for each realmem import of a Python file."""
    tree = ast.parse(path.read_text())
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(
        ".")[0]

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    up = package.split(".")[:len(package.split(".")) - child.level + 1]
                    base = ".".join([*up, *([base] if base else [])])
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield (full if full in MODULES else base), top
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, top and not inside)
    for name, top in visit(tree, True):
        if name.split(".")[0] == "realmem":
            yield name, top


MODULES = {module_name(path) for path in [*CYTHON, *PYTHON]}


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", CYTHON, ids=ids(CYTHON))
def test_cimports(path):
    name = module_name(path)
    allowed_outside = {"libc", "posix", "cython"} | ({"cpython"} if layer(name) >= 2 else set())
    for other in cimports(path.read_text()):
        assert not other.startswith("."), f"{other}: cimports are absolute"
        if other.split(".")[0] != "realmem":
            assert other.split(".")[0] in allowed_outside, other
            continue
        assert other in MODULES, f"{other} does not exist"
        assert layer(other) <= layer(name), f"layer {layer(name)} cimports {other}"
        # A measuring loop may use the face of what it measures; never the other way.
        if other.startswith("realmem._bench"):
            assert name.startswith("realmem._bench"), f"{name} uses a measuring loop: {other}"


def realmem_imports_of_cython(text):
    """List the realmem modules that Cython source imports as Python does."""
    return re.findall(r"^\s*(?:from\s+(realmem\S*)\s+import\b|import\s+(realmem\S*))", text, re.M)


@pytest.mark.parametrize("path", CYTHON, ids=ids(CYTHON))
def test_compiled_modules_know_only_the_leaves(path):
    found = {first or second for first, second in realmem_imports_of_cython(path.read_text())}
    allowed = LEAVES | {name for name in MODULES if layer(name) == layer(module_name(path)) == 2}
    assert found <= allowed


@pytest.mark.parametrize("path", PYTHON, ids=ids(PYTHON))
def test_python_imports(path):
    name = module_name(path)
    for other, top in imports(path):
        assert ".".join(other.split(".")[:2]) != "realmem._kernel", "not for Python"
        if name in LEAVES:
            assert other in LEAVES, f"a leaf imports {other}"
        elif layer(other) > layer(name):
            assert not top and layer(name) == 3 and layer(other) == 4, f"{other} lies above"


def ring(graph):
    """Return one ring of a graph of sets, or None."""
    done = set()

    def walk(node, path):
        if node in path:
            return [*path[path.index(node):], node]
        if node in done:
            return None
        for other in sorted(graph.get(node, ())):
            found = walk(other, [*path, node])
            if found:
                return found
        done.add(node)
        return None
    return next((found for node in sorted(graph) if (found := walk(node, []))), None)


def test_no_ring_of_cimports():
    graph = {}
    for path in CYTHON:
        name = module_name(path)
        graph.setdefault(name, set()).update(
            other for other in cimports(path.read_text())
            if other.startswith("realmem") and other != name)
    assert ring(graph) is None


def test_no_ring_of_python_imports():
    graph = {}
    for path in PYTHON:
        name = module_name(path)
        above = {name.rpartition(".")[0]}         # `from realmem import x` names the package
        graph[name] = {other for other, top in imports(path)
                       if top and other not in above and other != name and layer(other) > 2}
    assert ring(graph) is None


def test_ring_is_found():
    assert ring({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert ring({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_include_root_is_no_package():
    for name in ("__init__.py", "__init__.pxd", "__init__.pyx"):
        assert not (ROOT / "cython" / name).exists(), "it would shadow the module `cython`"
    assert not list((ROOT / "tests").rglob("__init__.py")), "py-libnuma installs a `tests`, too"
