"""Form of what people read: docstrings, stubs, who may print, the README's tree."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted((ROOT / "realmem").rglob("*.py"))
STUBS = sorted((ROOT / "realmem").rglob("*.pyi"))
COMPILED = sorted((ROOT / "cython").rglob("*.pyx"))


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def public(tree):
    """Yield (name, node) of what a module shows: itself, public classes, functions, methods."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{inner.name}", inner) for inner in node.body
                            if isinstance(inner, ast.FunctionDef)
                            and not inner.name.startswith("_"))


def is_overload(node):
    return any("overload" in ast.unparse(mark) or ".setter" in ast.unparse(mark)
               for mark in getattr(node, "decorator_list", []))


@pytest.mark.parametrize("path", PYTHON, ids=ids(PYTHON))
def test_docstrings(path):
    wrong = []
    for name, node in public(ast.parse(path.read_text())):
        if is_overload(node):
            continue
        text = ast.get_docstring(node)
        if not text:
            wrong.append(f"{name}: no docstring")
            continue
        summary = " ".join(text.partition("\n\n")[0].split())
        lower = name != "module" and summary[0].islower()       # "mmap and munmap: ..." is fine
        if not summary.endswith((".", "?", ":")) or lower:
            wrong.append(f"{name}: {summary!r} is no sentence")
        if isinstance(node, ast.FunctionDef):
            spec = node.args
            known = {arg.arg for arg in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs,
                                         *filter(None, (spec.vararg, spec.kwarg))]}
            named = set(re.findall(r"^\s*:param \*{0,2}(\w+):", text, re.M))
            wrong += [f"{name}: no parameter {other}" for other in sorted(named - known)]
    assert wrong == []


@pytest.mark.parametrize("path", PYTHON, ids=ids(PYTHON))
def test_only_the_command_line_prints(path):
    if path.relative_to(ROOT / "realmem").parts[0] in ("cli", "__main__.py"):
        return
    calls = [node.lineno for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
             and node.func.id == "print"]
    assert calls == []


@pytest.mark.parametrize("path", PYTHON + COMPILED, ids=ids(PYTHON + COMPILED))
def test_nothing_is_left_to_be_written(path):
    assert "NotImplementedError" not in path.read_text()


def test_faces_do_not_repeat_each_others_docstrings():
    seen, twice = {}, []
    for path in sorted((ROOT / "cython/realmem/_core").rglob("*.pyx")):
        for text in re.findall(r'"""(.*?)"""', path.read_text(), re.S):
            lines = [line.strip() for line in text.split("\n")]
            for run in zip(lines, lines[1:], lines[2:], lines[3:], strict=False):
                if all(run) and seen.setdefault(run, path) != path:
                    twice.append((path.name, seen[run].name, run[0]))
    assert twice == []


def test_stubs_stand_beside_what_python_imports():
    """Each module of _core and _bench has a stub, none of _kernel has one, none is left over."""
    modules = {path.relative_to(ROOT / "cython").with_suffix("") for path in COMPILED}
    stubs = {path.relative_to(ROOT).with_suffix("") for path in STUBS}
    wanted = {name for name in modules if name.parts[1] in ("_core", "_bench")}
    assert stubs == wanted


@pytest.mark.parametrize("path", STUBS, ids=ids(STUBS))
def test_stub_agrees(path):
    """The names of a stub, and of the classes in it, are those of the compiled module."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    tree = ast.parse(path.read_text())

    def names(body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name, node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node

    assert not [name for name, node in names(tree.body) if isinstance(
        node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)], "signatures only"
    declared = dict(names(tree.body))
    assert [name for name in declared if not hasattr(module, name)] == []
    # a class that Python never names, such as a buffer's exporter, may be left out
    own = {name for name, value in vars(module).items() if not name.startswith("_")
           and not isinstance(value, type)
           and getattr(value, "__module__", None) == module.__name__}
    assert own <= set(declared)
    for name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            members = {inner for inner, _ in names(node.body) if not inner.startswith("__")}
            there = getattr(module, name)
            assert [inner for inner in members if not hasattr(there, inner)] == []
            shown = {inner for inner in vars(there) if not inner.startswith("_")}
            assert shown <= members, name


def test_kernel_contracts():
    """Declarations in a _kernel .pxd stand, in groups, under a comment that says what they do."""
    bare = []
    for path in sorted((ROOT / "cython/realmem/_kernel").glob("*.pxd")):
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            if not line.startswith("cdef ") or "noexcept" not in line.partition("#")[0]:
                continue
            if line.startswith(("cdef bint ", "cdef inline ")):
                continue                # a predicate's name says it; a body is there to read
            above = at - 1
            while above >= 0 and lines[above].strip() and not lines[above].startswith("#"):
                above -= 1
            if above < 0 or not lines[above].startswith("#"):
                bare.append(f"{path.name}:{at + 1}: {line}")
    assert bare == []


def tree_of_readme(text):
    """Yield the paths that the README's tree names: an indented or fenced `path  what it is`."""
    section = re.search(r"^## Architecture\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not section:
        return
    for block in re.findall(r"^```\n(.*?)^```", section[1], re.M | re.S):
        folders = []
        for line in block.splitlines():
            found = re.match(r"( *)([\w./-]+(?:, [\w./-]+)*)(?:  |$)", line)
            if not found or not re.search(r"[./]", found[2]):
                continue
            depth = len(found[1]) // 2
            for name in found[2].split(", "):
                yield "".join(folders[:depth]) + name
            if found[2].endswith("/"):
                folders[depth:] = [found[2]]


def test_readme_tree_exists():
    paths = list(tree_of_readme((ROOT / "README.md").read_text()))
    assert len(paths) > 10, "the README's architecture section has lost its tree"
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_tree_is_complete():
    """Every folder of the package and of the tests is in the tree."""
    named = {name.rstrip("/") for name in tree_of_readme((ROOT / "README.md").read_text())}
    tests = (ROOT / "tests").rglob("test_*.py")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in [*PYTHON, *COMPILED, *tests]}
    assert sorted(folders - named) == []
