"""Imports go one way. Those inside functions count; those under `if TYPE_CHECKING` do not."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

HARNESS = Path(harness.__file__).parent

#: A module imports its own folder and folders to the left; folders in one group do not import each other.
ORDER = (
    "core | records kernels | quantization | data models tasks | oscillation | methods"
    " | training | sweep exporting conformance | cluster | cli"
)
#: The files beside the folders. They import any folder; nothing imports them, and they do not import each other.
COMMANDS = [
    "__main__",
    "archive",
    "bench",
    "cancel",
    "config",
    "conform",
    "dashboard",
    "evaluate",
    "export",
    "launch",
    "logs",
    "repeat",
    "retry",
    "run",
    "status",
]
#: Libraries that only some folders or modules may import, also inside a function.
SERVICES = {
    "optuna": ("sweep",),
    "submitit": ("cluster",),
    "wandb": ("training.wandb_mirror", "cli.wandb_service", "cli.wandb_report"),
    "wandb_workspaces": ("dashboard", "cli.wandb_report"),
    "onnx": ("exporting.onnx_file",),
    "onnxruntime": ("exporting.onnx_file",),
    "onnxscript": ("exporting.onnx_file",),
}
#: Where torch is never imported at the top, so that `--help`, `status` and a YAML mistake never pay for it.
TORCH_FREE = (
    *("core", "records", "tasks", "sweep", "cluster", "cli", *COMMANDS),
    *("training.config", "training.run", "training.pretrain", "training.wandb_mirror"),
)
#: Packages whose `__init__.py` serves names; any other's is a docstring alone.
SERVING = ("", "quantization", "data", "models", "methods")

RANKS = {folder: rank for rank, group in enumerate(ORDER.split(" | ")) for folder in group.split()}


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by dotted name below it: `methods.ste`; a folder's `__init__` goes by the folder."""
    paths = {path.relative_to(package).with_suffix("").parts: path for path in sorted(package.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in paths.items()}


def imports(tree: ast.Module, package: str, known: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """What a module imports (names below the package lose its prefix), where, and whether at the top."""
    for node, top in _walk(tree, True):
        if isinstance(node, ast.Import):
            yield from ((name.name.removeprefix(f"{package}."), node.lineno, top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for name in node.names:
                child = f"{source}.{name.name}".removeprefix(f"{package}.")
                yield child if child in known else source.removeprefix(f"{package}."), node.lineno, top


def _walk(node: ast.AST, top: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from ((each, top) for other in child.orelse for each, _ in ((other, top), *_walk(other, top)))
            continue
        inner = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inner
        yield from _walk(child, inner)


def _is_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def breaches(package: Path) -> list[str]:
    """Every breach of the rules above in a package, as `module:line says what`."""
    known, found = modules(package), []
    for module, path in known.items():
        tree, folder = ast.parse(path.read_text(encoding="utf-8")), module.partition(".")[0]
        if module and folder not in RANKS and module not in COMMANDS:
            found.append(f"{module}: neither a command nor in a folder of ORDER")
        if path.name == "__init__.py" and module not in SERVING and len(tree.body) > 1:
            found.append(f"{module}: __init__.py holds more than a docstring")
        for target, line, top in imports(tree, package.name, known):
            if breach := _breach(module, target, top, known):
                found.append(f"{module}:{line} {breach}")
    return found


def _breach(module: str, target: str, top: bool, known: dict[str, Path]) -> str | None:
    here, there = module.partition(".")[0], target.partition(".")[0]
    if target.startswith("."):
        return "imports relatively"
    if there in SERVICES and not _is_in(module, SERVICES[there]):
        return f"imports {there}"
    if there == "torch" and top and _is_in(module, TORCH_FREE):
        return "imports torch at its top"
    if target not in known or not module:
        return None
    if there in COMMANDS:
        return f"imports the command {there}"
    if here != there and RANKS.get(there, 99) >= RANKS.get(here, 99):
        return f"imports {target}, which is not left of {here}"
    return None


def ring(package: Path) -> list[str] | None:
    """Modules that import each other in a ring, or None."""
    known = modules(package)
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in known.items()}
    graph = {
        module: sorted({target for target, _, _ in imports(tree, package.name, known) if target in known} - {module})
        for module, tree in trees.items()
    }
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in graph[module]:
                if found := search(other, [*path, module]):
                    return found
            done.add(module)
        return None

    return next((found for module in graph if (found := search(module, []))), None)


def test_imports_of_the_harness() -> None:
    assert breaches(HARNESS) == []
    assert ring(HARNESS) is None


def test_commands_and_folders_are_all_there_is() -> None:
    there = {path.stem for path in HARNESS.glob("*.py")} | {path.name for path in HARNESS.iterdir() if path.is_dir()}
    assert there - {"__init__", "__pycache__"} == {*COMMANDS, *RANKS}


def test_importing_what_is_torch_free_brings_no_torch() -> None:
    lines = ["import sys"]
    for name in modules(HARNESS):
        if _is_in(name, TORCH_FREE):
            lines += [f"import harness.{name}", f"if 'torch' in sys.modules: sys.exit('torch came with {name}')"]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


BREACHES = {
    "to the right": ("core/a.py", "from house.sweep import b", "core.a:1 imports sweep.b, which is not left of core"),
    "its name": ("core/a.py", "import house.sweep.b", "core.a:1 imports sweep.b, which is not left of core"),
    "in a method": (
        *("core/a.py", "class A:\n    def f(self):\n        from house.sweep.b import x"),
        "core.a:3 imports sweep.b, which is not left of core",
    ),
    "behind a try": (
        *("core/a.py", "try:\n    import house.sweep.b\nexcept ImportError:\n    pass"),
        "core.a:2 imports sweep.b, which is not left of core",
    ),
    "not TYPE_CHECKING": (
        *("core/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import house.sweep.b"),
        "core.a:4 imports sweep.b, which is not left of core",
    ),
    "a neighbour": ("data/a.py", "from house.models import b", "data.a:1 imports models.b, which is not left of data"),
    "a command": ("cli/a.py", "from house.launch import main", "cli.a:1 imports the command launch"),
    "a command by a command": ("run.py", "from house import launch", "run:1 imports the command launch"),
    "relatively": ("core/a.py", "from . import errors", "core.a:1 imports relatively"),
    "a service": ("cluster/a.py", "def f():\n    import optuna", "cluster.a:2 imports optuna"),
    "another service": ("training/a.py", "from wandb.sdk import x", "training.a:1 imports wandb"),
    "torch": ("sweep/a.py", "from torch import nn", "sweep.a:1 imports torch at its top"),
    "torch in a class": ("training/run.py", "class A:\n    import torch", "training.run:2 imports torch at its top"),
    "a new folder": ("attic/a.py", "", "attic.a: neither a command nor in a folder of ORDER"),
    "a new file": ("helper.py", "", "helper: neither a command nor in a folder of ORDER"),
    "an __init__": ("core/__init__.py", '"""Core."""\nx = 1', "core: __init__.py holds more than a docstring"),
}


def house(folder: Path, **texts: str) -> Path:
    for name in ("__init__.py", "launch.py", "core/errors.py", "sweep/b.py", "models/b.py", *texts):
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, "") + "\n")
    return folder / "house"


@pytest.mark.parametrize(("file", "text", "said"), BREACHES.values(), ids=BREACHES)
def test_a_breach_is_seen(tmp_path: Path, file: str, text: str, said: str) -> None:
    assert breaches(house(tmp_path, **{file: text})) == [said]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sweep/a.py", "from house.core.errors import x\nfrom house.sweep import b\nimport optuna"),
        ("core/a.py", "if TYPE_CHECKING:\n    from house.sweep import b\nimport pathlib"),
        ("sweep/a.py", "def f():\n    import torch"),
        ("status.py", "from house.sweep import b"),
        ("data/__init__.py", "from house.core import errors\nx = 1"),
    ],
)
def test_what_is_allowed_is_no_breach(tmp_path: Path, file: str, text: str) -> None:
    assert breaches(house(tmp_path, **{file: text})) == []
    assert ring(house(tmp_path)) is None


def test_a_ring_is_seen(tmp_path: Path) -> None:
    texts = {"core/a.py": "def f():\n    from house.core import c", "core/c.py": "import house.core.a"}
    assert ring(house(tmp_path, **texts)) == ["core.a", "core.c", "core.a"]
