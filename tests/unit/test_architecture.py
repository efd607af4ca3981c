"""What modules keep to; who may import whom is in `test_layers`."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rltrack"


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


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
        "checkpoints/rings.py",
    ):
        own = [
            name
            for name in imports(PACKAGE / module)
            if name.startswith("rltrack")
            and name not in ("rltrack.checkpoints.version", "rltrack.checkpoints.rings", "rltrack.ranking")
        ]
        assert own == [], module


def test_no_module_is_long_without_a_reason():
    long = [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    without = [
        path.name for path in long if "Long because" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert without == []


def test_modules_of_training_import_each_other_in_one_direction():
    """Imports for types count too: whoever reads a module needs to know those before it only."""
    folder = PACKAGE / "training"
    modules = {path.stem for path in folder.glob("*.py")}
    graph = {}
    for path in folder.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        found = {node.module.split(".")[2] for node in nodes if (node.module or "").startswith("rltrack.training.")}
        found |= {alias.name for node in nodes if node.module == "rltrack.training" for alias in node.names}
        graph[path.stem] = found & modules
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


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


def test_text_files_are_utf_8_on_every_machine():
    """Without `encoding` it is that of the machine."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and _opens_text(node) and "encoding" not in {word.arg for word in node.keywords}
    ]
    assert found == []


def _opens_text(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    mode = getattr(call.args[1], "value", "") if call.args[1:] else ""
    return isinstance(call.func, ast.Name) and call.func.id == "open" and "b" not in mode
