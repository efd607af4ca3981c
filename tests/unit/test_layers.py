"""Who may import whom: packages from the ground up, each importing only those above it in the list, and their third parties."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "rltrack"

LAYERS = {
    "ground": "errors text secrets damage files plain_data validation addresses sealed cleanup ranking episode_limits permissions "
    "processes loopback backoff hash_seed",
    "names as data": "named_code algorithms zoo_presets zoo_logs",
    "config": "config identity",
    "what is recorded": "resources provenance journal evaluation.statistics evaluation.results",
    "checkpoints": "checkpoints",
    "runs": "config_file runs",
    "tracking": "tracking",
    "agents": "acceleration agents",
    "evaluation": "evaluation",
    "training": "training",
    "inspection": "inspection",
    "comparison": "comparison",
    "studies": "studies",
    "registry": "registry",
    "serving": "serving",
    "flows": "flows",
    "doors": "console ui doctor starter",
    "commands": "cli benchmarks testing __main__",
}
"""The packages in order. A module belongs to its longest name here; a package imports what is above it."""

LAZY_PACKAGE = "rltrack"
"""The package itself names everything, and imports it when it is first used."""

UPWARDS = {("tracking.sinks.mlflow", "registry.models")}
"""Imports at run time that go upwards: MLflow's sink stores policies as models."""

THIRD_PARTIES = {
    "torch": ("acceleration/", "agents/", "benchmarks/acceleration.py", "benchmarks/overhead.py"),
    "stable_baselines3": ("acceleration/", "agents/", "benchmarks/acceleration.py", "benchmarks/overhead.py"),
    "sb3_contrib": ("agents/",),
    "sbx": ("agents/",),
    "mlflow": ("tracking/sinks/", "registry/", "benchmarks/mlflow_recipe.py", "benchmarks/serving.py"),
    "fastapi": ("serving/",),
    "starlette": ("serving/",),
    "uvicorn": ("serving/", "flows/"),
    "prometheus_client": ("serving/",),
    "huggingface_hub": ("registry/hub.py",),
    "onnxruntime": ("agents/onnx_export.py",),
    "prefect": ("flows/",),
    "optuna": ("studies/",),
    "tensorboard": ("tracking/sinks/",),
    "typer": ("cli/",),
    "rich": ("console/", "cli/", "doctor.py", "training/reporter.py"),
    "matplotlib": ("tracking/plots.py", "studies/plots.py", "comparison/pictures.py"),
    "sqlalchemy": ("flows/", "tracking/sinks/", "studies/", "registry/"),
    "pydantic": (
        "config.py",
        "identity.py",
        "validation.py",
        "runs/configuration.py",
        "starter.py",
        "flows/",
        "studies/",
    ),
    "pytest": (),
}
"""The only places that import a package, at any time."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name, without ``rltrack.``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> list[tuple[str, str]]:
    """What a module imports, with when: ``start``, ``later`` (inside a function), or ``types`` (for the type checker only)."""
    tree = ast.parse(path.read_text())
    when: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            when.update((id(child), "later") for child in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            when.update((id(child), "types") for child in ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, when.get(id(node), "start")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("rltrack.") in modules()
                found.append((full if is_module else node.module, when.get(id(node), "start")))
    return found


@cache
def own_imports() -> frozenset[tuple[str, str, str]]:
    """Importing module, imported module, when; among our own."""
    return frozenset(
        (module, name.removeprefix("rltrack").removeprefix("."), when)
        for module, path in modules().items()
        for name, when in imports(path)
        if name.split(".")[0] == "rltrack" and module
    )


@cache
def layer_of(module: str) -> int:
    """The place of a module's package in the list."""
    places = {name: place for place, names in enumerate(LAYERS.values()) for name in names.split()}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in places:
            return places[name]
    raise AssertionError(f"{module} has no place in LAYERS, and docs/architecture.md: which package does it belong to?")


def upwards(*whens: str) -> set[tuple[str, str]]:
    return {
        (module, name)
        for module, name, when in own_imports()
        if when in whens and name and layer_of(name) > layer_of(module)
    }


def test_every_module_has_a_place():
    for module in modules():
        if module:
            layer_of(module)


def test_imports_go_down_only():
    assert upwards("start") == set()
    assert upwards("later") == UPWARDS


def test_types_go_down_too():
    assert upwards("types") == set()


def test_no_circle_crosses_rooms():
    """Inside a package some modules may know each other; across packages, and when modules are imported, nowhere."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, name, when in own_imports():
        if when == "start" and name and name != module:
            graph[module].add(name)

    def reaches(begin: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[begin])
        while waiting:
            found = waiting.pop()
            if found not in seen:
                seen.add(found)
                waiting += graph[found]
        return seen

    reached = {module: reaches(module) for module in list(graph)}
    circles = {
        tuple(sorted((module, other)))
        for module, others in reached.items()
        for other in others
        if module in reached.get(other, ()) and layer_of(module) != layer_of(other)
    }
    assert circles == set()
    together = sorted(module for module, others in reached.items() if module in others)
    assert together == [], "modules that import each other, in one package"


def test_third_parties_stay_in_their_rooms():
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules().values()
        for name, _ in imports(path)
        if (allowed := THIRD_PARTIES.get(name.split(".")[0])) is not None
        and not str(path.relative_to(PACKAGE)).startswith(allowed or ("nowhere",))
    ]
    assert found == []
