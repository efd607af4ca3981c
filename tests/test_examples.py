"""What the documentation shows and the examples do, run as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]
EXAMPLES = [
    "basic",
    "episodic",
    "early-stopping",
    "adaptive",
    "from-configuration",
    "pause-resume",
    "resource-monitoring",
]


def run(arguments, folder):
    environment = {**os.environ, "RLTRACK_ROOT": str(folder / "mlruns")}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS)
def test_block_of_the_documentation(code, tmp_path):
    run(["-c", code], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    output = run([str(PROJECT / "examples" / "train_loop_usage.py"), name], tmp_path)
    assert re.search(r"^(completed|stopped): ", output, flags=re.MULTILINE)


def test_every_example_is_tested():
    listed = run([str(PROJECT / "examples" / "train_loop_usage.py"), "--list"], PROJECT)
    assert [line.split()[0] for line in listed.splitlines()] == EXAMPLES


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists() or target.endswith("scores.md"), f"{page.name}: {target}"


def test_every_flag_in_the_documentation_exists():
    from typer.testing import CliRunner

    from rltrack.cli import app

    for page in PAGES:
        for line in re.findall(r"^rltrack (.*)$", page.read_text(), flags=re.MULTILINE):
            words = line.partition("#")[0].split()
            help_text = CliRunner().invoke(app, [words[0], "--help"]).output
            for word in words:
                if word.startswith("--"):
                    assert word in help_text, f"{page.name}: rltrack {line}"
