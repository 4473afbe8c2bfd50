"""What may import what, what is light, and what must not be in the tree at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"ayni": ROOT / "sdk/ayni", "ayni_export": ROOT / "export/ayni_export",
            "ayni_coordinator": ROOT / "coordinator/ayni_coordinator"}  # fmt: skip
MAY_IMPORT = {
    "ayni": {"ayni"},
    "ayni_export": {"ayni", "ayni_export"},
    "ayni_coordinator": {"ayni", "ayni_export", "ayni_coordinator"},
}
HEAVY = {"numpy", "torch", "monai", "safetensors", "PIL", "onnx", "onnxruntime", "sqlalchemy", "fsspec"}
HEAVY_FOLDERS = ("learning", "tensors", "data")  # of the SDK; all else in it is light
FILES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]
LIGHT = [path for path in PACKAGES["ayni"].rglob("*.py") if path.parent.name not in HEAVY_FOLDERS]
IDS = [str(path.relative_to(ROOT)) for _, path in FILES]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def at_the_top(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run when the module is imported; `if TYPE_CHECKING` does not."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield from (inner for inner in ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef))


@pytest.mark.parametrize(("package", "path"), FILES, ids=IDS)
def test_imports_point_one_way(package: str, path: Path) -> None:
    ours = {name.partition(".")[0] for name in imported(ast.walk(tree_of(path)))} & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize(("package", "path"), FILES, ids=IDS)
def test_no_file_can_run_what_came_over_the_wire(package: str, path: Path) -> None:
    tree = tree_of(path)
    roots = {name.partition(".")[0] for name in imported(ast.walk(tree))}
    assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system"), f"line {node.lineno}"
        assert given.get("shell") in (None, "False"), f"line {node.lineno}"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", f"line {node.lineno}"


@pytest.mark.parametrize("path", LIGHT, ids=[str(path.relative_to(ROOT)) for path in LIGHT])
def test_what_a_site_needs_to_talk_imports_nothing_heavy(path: Path) -> None:
    names = imported(at_the_top(tree_of(path)))
    assert not {name.partition(".")[0] for name in names} & HEAVY
    assert not {name for name in names if name.startswith(tuple(f"ayni.{folder}" for folder in HEAVY_FOLDERS))}


@pytest.mark.parametrize("module", ["ayni", "ayni.site.site", "ayni.cli", "ayni_coordinator.cli", "ayni_export.cli"])
def test_importing_it_loads_neither_numpy_nor_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"


@pytest.mark.parametrize(("package", "path"), FILES, ids=IDS)
def test_a_file_says_what_it_is_for(package: str, path: Path) -> None:
    if path.read_text().strip():
        assert ast.get_docstring(tree_of(path))


def test_nothing_listens_but_the_coordinators_one_port() -> None:
    binding = {
        str(path.relative_to(ROOT))
        for _, path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".bind", "create_server"))
    }
    assert binding - {"coordinator/ayni_coordinator/demo/run.py"} == {"sdk/ayni/wire/curve.py"}  # it looks for a port
