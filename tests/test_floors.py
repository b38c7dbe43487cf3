"""Imports go down only (design.md, section 3). Imports inside functions count; `if TYPE_CHECKING` does not."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import harness

HARNESS = Path(harness.__file__).parent

#: The floor of every module; a package's holds for all of its modules.
FLOORS = {
    **dict.fromkeys(
        (
            *("errors", "explain", "registry", "knobs", "seeding", "schema", "yaml_file", "quantization"),
            *("alone", "record", "archive", "runlog", "source", "cache", "stopwatch"),
            *("native", "native_methods", "gpu", "gpu_quantize"),
        ),
        0,
    ),
    **dict.fromkeys(("layers", "attention", "bilinear_attention", "data", "compilation", "gpu_passes"), 1),
    **dict.fromkeys(("models", "oscillation", "regularizer", "calibration", "features"), 2),
    "methods": 3,
    **dict.fromkeys(("config", "search", "objective", "overrides", "sweep", "growth"), 4),
    **dict.fromkeys(("evaluator", "checkpoint", "tracking", "provenance", "schedule"), 5),
    "train": 6,
    **dict.fromkeys(("build", "run", "pretrain"), 7),
    **dict.fromkeys(("algorithms", "storage", "study", "rebuild", "roster", "plan", "place", "stopping", "worker"), 8),
    **dict.fromkeys(("launch", "fleet", "dry_run", "progress", "profile", "locate"), 9),
    **dict.fromkeys(("standing", "status", "cancel", "retry", "logs", "dashboard", "evaluate", "repeat"), 9),
}

#: Services that may be missing: who may import them, also inside a function.
SERVICES = {
    "wandb": {"tracking", "dashboard"},
    "wandb_workspaces": {"dashboard"},
    "submitit": {"fleet", "worker", "dry_run"},
    "optuna": {"algorithms", "storage", "study", "plan", "rebuild", "retry", "standing"},
}

#: Modules that must not bring torch in when they are imported.
TORCH_FREE = (
    *("errors", "explain", "registry", "knobs", "seeding", "schema", "yaml_file", "record"),
    *("data", "data.digits", "data.cifar10", "data.tiny_imagenet", "data.image_folder"),
    *("config", "search", "objective", "overrides", "sweep", "growth", "tracking", "run", "pretrain"),
    *("alone", "archive", "runlog", "source", "cache", "storage", "rebuild", "roster", "place", "stopping", "schedule"),
    *("algorithms", "study", "plan", "worker", "launch", "fleet", "dry_run", "progress", "profile"),
    *("locate", "standing", "status", "cancel", "retry", "logs", "dashboard", "evaluate", "repeat"),
    *("calibration", "models", "methods"),
    *(f"methods.{path.stem}" for path in sorted(HARNESS.glob("methods/[!_]*.py"))),
)


@dataclass(frozen=True)
class Import:
    """One module imports another; `top` unless inside a function."""

    importer: str
    imported: str
    line: int
    top: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package by dotted name below it: `methods.ste`; a package goes by its folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:  # the package itself serves the library's names and belongs to no floor
            found[".".join(parts)] = path
    return found


def imports(folder: Path, package: str = "harness") -> list[Import]:
    """Every import of every module. Names below the package lose its prefix; others keep their full name."""
    known = modules(folder)
    return [
        Import(module, target, line, top)
        for module, path in known.items()
        for target, line, top in _targets(ast.parse(path.read_text(encoding="utf-8")), package, known)
    ]


def _targets(tree: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[tuple[str, int, bool]]:
    for node, top in _walk(tree, True):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield _below(name.name, package), node.lineno, top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name of what is imported"
            source = _below(node.module or "", package)
            for name in node.names:
                child = name.name if source == package else f"{source}.{name.name}"
                yield (child if child in known else source), node.lineno, top


def _walk(node: ast.AST, top: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but those under `if TYPE_CHECKING`, and whether each runs when its module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other, top
                yield from _walk(other, top)
            continue
        inner = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inner
        yield from _walk(child, inner)


def _below(name: str, package: str) -> str:
    return name.removeprefix(f"{package}.")


def floor(module: str, floors: Mapping[str, int] = FLOORS) -> int | None:
    """None for a module that the table does not know."""
    return floors.get(module.partition(".")[0])


def upward(found: list[Import], known: Mapping[str, Path], floors: Mapping[str, int] = FLOORS) -> list[str]:
    """The imports that go up a floor."""
    inside = [edge for edge in found if edge.imported in known]
    heights = {name: floor(name, floors) for edge in inside for name in (edge.importer, edge.imported)}
    return [
        f"{edge} (floor {heights[edge.importer]} to {heights[edge.imported]})"
        for edge in inside
        if (heights[edge.imported] or 0) > (heights[edge.importer] or 0)
    ]


def cycle(found: list[Import], known: Mapping[str, Path]) -> list[str] | None:
    """Modules that import each other in a ring, or None."""
    graph: dict[str, set[str]] = {name: set() for name in known}
    for edge in found:
        if edge.imported in known and edge.imported != edge.importer:
            graph[edge.importer].add(edge.imported)
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(graph[name]):
            if ring := search(other, [*path, name]):
                return ring
        done.add(name)
        return None

    return next((ring for name in sorted(graph) if (ring := search(name, []))), None)


def test_every_module_has_a_floor() -> None:
    assert [name for name in modules(HARNESS) if floor(name) is None] == []


def test_every_floor_has_its_module() -> None:
    assert {name.partition(".")[0] for name in modules(HARNESS)} == set(FLOORS)


def test_imports_go_down_only() -> None:
    assert upward(imports(HARNESS), modules(HARNESS)) == []


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert cycle(imports(HARNESS), modules(HARNESS)) is None


@pytest.mark.parametrize(("service", "allowed"), SERVICES.items(), ids=SERVICES)
def test_a_service_is_imported_only_where_it_belongs(service: str, allowed: set[str]) -> None:
    importers = {edge.importer for edge in imports(HARNESS) if edge.imported.partition(".")[0] == service}
    assert importers == allowed


def test_no_module_above_the_numerics_imports_torch_at_its_top() -> None:
    tops = {edge.importer for edge in imports(HARNESS) if edge.top and edge.imported.partition(".")[0] == "torch"}
    assert tops & set(TORCH_FREE) == set()
    # Of floor 4 and up, the modules that train may; all others are in the list.
    trainers = {"evaluator", "checkpoint", "provenance", "train", "build"}
    assert {name for name in FLOORS if FLOORS[name] >= 4} - set(TORCH_FREE) == trainers


def test_importing_them_all_brings_no_torch() -> None:
    lines = ["import sys"]
    for name in TORCH_FREE:
        lines += [f"import harness.{name}", f"if 'torch' in sys.modules: sys.exit('torch came with {name}')"]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


TOWER = {"low": 0, "middle": 1, "top": 2}


def tower(folder: Path, **texts: str) -> tuple[list[Import], dict[str, Path]]:
    package = folder / "tower"
    (package / "middle").mkdir(parents=True)
    for name in ("__init__.py", "low.py", "middle/__init__.py", "middle/part.py", "top.py"):
        key = name.removesuffix(".py").replace("/", "_")
        (package / name).write_text(texts.get(key, "") + "\n")
    return imports(package, "tower"), modules(package)


UPWARD = {
    "from": ("from tower.top import x", "low:1 imports top (floor 0 to 2)"),
    "import": ("import tower.top", "low:1 imports top (floor 0 to 2)"),
    "from the package": ("from tower import top", "low:1 imports top (floor 0 to 2)"),
    "in a function": ("def f():\n    from tower.middle.part import x", "low:2 imports middle.part (floor 0 to 1)"),
    "in a method": ("class A:\n    def f(self):\n        import tower.top", "low:3 imports top (floor 0 to 2)"),
    "a module of a package": ("from tower.middle import part", "low:1 imports middle.part (floor 0 to 1)"),
    "behind a try": ("try:\n    import tower.top\nexcept ImportError:\n    pass", "low:2 imports top (floor 0 to 2)"),
    "not TYPE_CHECKING": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import tower.top",
        "low:5 imports top (floor 0 to 2)",
    ),
}


@pytest.mark.parametrize(("text", "said"), UPWARD.values(), ids=UPWARD)
def test_the_walker_sees_an_import_that_goes_up(tmp_path: Path, text: str, said: str) -> None:
    found, known = tower(tmp_path, low=text)
    assert upward(found, known, TOWER) == [said]


@pytest.mark.parametrize(
    "texts",
    [
        {"top": "from tower.low import x\nfrom tower.middle import part"},
        {"middle_part": "import tower.low", "middle___init__": "from tower.middle.part import x"},
        {"low": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tower.top import x"},
        {"low": "import torch\nfrom pathlib import Path"},
    ],
)
def test_the_walker_lets_imports_go_down(tmp_path: Path, texts: dict[str, str]) -> None:
    found, known = tower(tmp_path, **texts)
    assert upward(found, known, TOWER) == []
    assert cycle(found, known) is None


def test_the_walker_sees_a_ring(tmp_path: Path) -> None:
    texts = {
        "middle_part": "from tower import middle",
        "middle___init__": "def f():\n    from tower.middle import part",
    }
    found, known = tower(tmp_path, **texts)
    assert cycle(found, known) == ["middle", "middle.part", "middle"]


def test_the_walker_knows_tops_from_functions(tmp_path: Path) -> None:
    found, _ = tower(tmp_path, low="import torch\ndef f():\n    import optuna\nclass A:\n    import wandb")
    assert {edge.imported: edge.top for edge in found} == {"torch": True, "optuna": False, "wandb": True}
