"""Who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rltrack"
ALLOWED = {
    "torch": ("acceleration/", "agents/", "benchmarks/acceleration.py", "benchmarks/overhead.py"),
    "stable_baselines3": ("acceleration/", "agents/", "benchmarks/acceleration.py", "benchmarks/overhead.py"),
    "sb3_contrib": ("agents/",),
    "sbx": ("agents/",),
    "mlflow": ("tracking/sinks/", "registry/", "benchmarks/mlflow_recipe.py", "benchmarks/serving.py"),
    "prefect": ("flows/",),
    "optuna": ("studies/",),
}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_stay_in_their_rooms(package):
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] == package and not str(path.relative_to(PACKAGE)).startswith(ALLOWED[package])
    ]
    assert found == []


def test_flows_leave_agents_and_tracking_to_the_rest():
    found = [
        f"{path.name}: {name}"
        for path in (PACKAGE / "flows").rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] in ("torch", "stable_baselines3", "mlflow")
    ]
    assert found == []


def test_acceleration_needs_nothing_else_of_rltrack():
    found = {name for path in (PACKAGE / "acceleration").rglob("*.py") for name in imports(path)}
    own = {name for name in found if name.startswith("rltrack") and not name.startswith("rltrack.acceleration")}
    assert own == {"rltrack.errors"}


def test_pure_modules_know_no_others():
    for module in (
        "evaluation/statistics.py",
        "agents/exported_policy.py",
        "agents/policy_data.py",
        "agents/policy_spaces.py",
        "checkpoints/retention.py",
        "checkpoints/encoding.py",
        "agents/rings.py",
    ):
        own = [
            name
            for name in imports(PACKAGE / module)
            if name.startswith("rltrack")
            and name not in ("rltrack.checkpoints.version", "rltrack.agents.rings", "rltrack.ranking")
        ]
        assert own == [], module


def test_no_module_is_long_without_a_reason():
    long = [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    without = [
        path.name for path in long if "Long because" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert without == []
    assert long != [], "then this rule and its exception can go"


def test_every_public_name_is_there():
    import rltrack

    for name in rltrack.__all__:
        assert getattr(rltrack, name) is not None
    with pytest.raises(AttributeError):
        _ = rltrack.nothing


def test_seed_names_are_importable_from_the_loops_module():
    from rltrack.training import train_loop

    for name in (
        "TrainingLoop", "TrainingStrategy", "TrainingProgress", "TrainingStatistics", "TrainingState", "ProgressReporter",
        "LoggingHook", "EarlyStoppingHook", "TrainingHook", "MetricsTracker", "create_training_loop",
    ):  # fmt: skip
        assert hasattr(train_loop, name), name
