"""The house of the design holds: imports point one way, plug-ins know no other by name, public things are documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "evalkit"
FILES = sorted(p for p in PACKAGE.rglob("*.py"))

FLOORS = {
    "version": 0,
    "errors": 0,
    "files": 1,
    "types": 1,
    "validation": 2,
    "progress": 2,
    "state": 2,
    "download": 2,
    "catalog": 3,
    "metrics": 3,
    "adapters": 4,
    "datasets": 4,
    "features": 5,
    "probing": 6,
    "runners": 7,
    "records": 8,
    "engine": 9,
    "reporting": 10,
    "pretrain": 10,
    "cli": 11,
}
"""A file imports only from floors below its own, or from its own room."""

SIBLINGS = {"datasets": {"adapters", "catalog"}, "adapters": {"datasets", "catalog"}, "metrics": {"catalog"}}
PLUGINS = ("adapters", "datasets", "runners")


NEIGHBOURS = {
    ("adapters/fake.py", "evalkit.adapters.pixels"): "cuts patches the same way",
    ("adapters/random.py", "evalkit.adapters.dino"): "the same architectures, untrained",
    ("pretrain/methods/moco_v3.py", "evalkit.adapters.moco_v3"): "starts as the untrained twin does",
    ("datasets/cifar.py", "evalkit.datasets.image_folder"): "CIFAR as a zip of images is an image folder",
}
"""Plug-ins that may name another of their own room, with the reason. A runner never does."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def defined(node: ast.stmt) -> set[str]:
    """Names that a statement at the top of a module gives: a function's, or those assigned to."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else set()


def imported(path: Path) -> Iterator[str]:
    """Dotted names under evalkit that a file imports, at the top or inside functions, typing-only ones too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("evalkit"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "evalkit":
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                inside = PACKAGE.parent / dotted.replace(".", "/")
                yield dotted if inside.is_dir() or inside.with_suffix(".py").exists() else str(node.module)


def edges() -> Iterator[tuple[Path, str, str]]:
    for path in FILES:
        for name in imported(path):
            parts = name.split(".")
            yield path, parts[1] if len(parts) > 1 else "__init__", name


def test_every_file_stands_on_a_floor() -> None:
    assert {room(p) for p in FILES} - {"__init__"} == set(FLOORS)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, target, name in edges()
        if room(path) not in (target, "__init__")
        and target != "__init__"
        and (FLOORS[target] >= FLOORS[room(path)] or target in SIBLINGS.get(room(path), set()))
    ]
    assert wrong == []


def test_no_plugin_knows_another_by_name() -> None:
    """A module with the plug-in verb of its room is never imported by name from inside the package."""
    verbs = {"adapters": "load", "datasets": "open", "runners": "run"}
    plugins = {
        f"evalkit.{r}.{p.stem}"
        for r in PLUGINS
        for p in (PACKAGE / r).glob("*.py")
        if p.stem != "__init__" and any(verbs[r] in defined(n) for n in ast.parse(p.read_text("utf-8")).body)
    }
    assert len(plugins) >= 10
    found = {(p.relative_to(PACKAGE).as_posix(), name) for p, _, name in edges() if name in plugins}
    assert found == set(NEIGHBOURS)


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path, _, name in edges():
        me = ".".join(["evalkit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        if me != "evalkit" and name != me:
            graph.setdefault(me, set()).add(name)
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail[trail.index(node) :], node))
        if node not in done:
            for target in graph.get(node, ()):
                # a package's members import the package's own helpers through its folder, not through __init__
                if not node.startswith(target + "."):
                    visit(target, (*trail, node))
            done.add(node)

    for start in graph:
        visit(start, ())


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text("utf-8"))
    yield path.name, tree
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_things_have_docstrings_and_few_parameters(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text("utf-8").strip():
        return
    missing = [name for name, node in public(path) if not ast.get_docstring(node)]
    assert missing == []
    if room(path) == "cli" or path.name == "__main__.py":
        return  # a command has as many parameters as it has options
    crowded = [
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
        and len([a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]) > 7
        and node.name not in CROWDED
    ]
    assert crowded == []


CROWDED = {
    "stream": "a generator that a person may call in a notebook: every argument but the first four has a default",
}


def test_names_promised_are_there() -> None:
    import evalkit

    assert sorted(evalkit.__all__, key=str.lower) == sorted(evalkit.__all__, key=str.lower)
    assert [n for n in evalkit.__all__ if not hasattr(evalkit, n)] == []


def test_importing_evalkit_and_its_command_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("torch", "timm", "sklearn", "pandas", "numpy", "pydantic")
    code = f"import sys, evalkit, evalkit.cli.main; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


OWN_FILES = {
    "cli/catalogue.py", "datasets/__init__.py", "datasets/ade20k_lists.py", "datasets/dense.py", "datasets/image_folder.py",
    "datasets/labelled.py", "pretrain/experiment.py", "reporting/site/build.py", "reporting/site/pictures.py",
    "records.py",
}  # fmt: skip
"""Where the package reads what it brings itself, and the machine's /proc."""


def test_files_from_outside_are_opened_by_one_rule() -> None:
    """`evalkit.files` refuses a FIFO, a socket and a device, which would hang or fill the memory."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            mode = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if node.func.attr in ("read_bytes", "read_text") or (node.func.attr == "open" and mode[:1] == ["rb"]):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == OWN_FILES
