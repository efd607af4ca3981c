"""The files that a forge and its robots read: they name what exists, and agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
ASKED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [line.strip() for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


def make_targets(workflow: Path) -> list[str]:
    return [line.split()[1] for line in commands(workflow) if line.startswith("make ")]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_the_makefile_has(workflow):
    known = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets(workflow)
    assert set(make_targets(workflow)) <= known


def test_the_tests_run_on_every_supported_python_and_system():
    [tests] = [path for path in WORKFLOWS if path.stem == "tests"]
    assert make_targets(tests) == ["check", "test", "compat"]
    matrix = yaml.safe_load(tests.read_text())["jobs"]["test"]["strategy"]["matrix"]
    supported = [line.rpartition(" ")[2] for line in ASKED["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert matrix["python"] == supported
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}


def test_a_release_is_published_without_a_stored_secret():
    text = next(path for path in WORKFLOWS if path.stem == "release").read_text()
    publish = yaml.safe_load(text)["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "secrets." not in text


def test_the_citation_names_this_version():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"], citation["license"]) == (
        ASKED["name"], ASKED["version"], ASKED["license"],
    )  # fmt: skip


def test_extras():
    """All of what rltrack's commands need is in `all`; what the base does without is in an extra only."""
    extras = ASKED["optional-dependencies"]
    assert set(re.search(r"\[(.+)\]", extras["all"][0])[1].split(",")) == extras.keys() - {
        "all", "atari", "box2d", "dev", "docs", "mujoco", "sbx",
    }  # fmt: skip
    assert not [need for need in ASKED["dependencies"] if re.match(r"(mlflow|prefect)\b(?!-)", need)]
