"""The documentation, followed literally: each page's blocks are run in their order, in a folder of their own.

``bash`` and ``python`` blocks are run, ``yaml`` blocks are validated; ``text``, ``console`` and ``sh`` show what one sees. A block
that cannot be run here has a comment before it, which readers do not see: ``<!-- not run: why -->``. ``<!-- first: command -->`` is
run before a block: what a reader of this page has done already. Configurations are the shipped ones, with small budgets.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
GENERATED = ("configuration.md", "cli.md")
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^( *)```(\w*)[^\n]*\n(.*?)^\2```$", flags=re.DOTALL | re.MULTILINE)
SHOWN = ("text", "console", "sh", "mermaid")
SMALL = {"total_timesteps": 2048, "eval_freq": 1024, "checkpoint_freq": None}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: What it is.
        text: Without the fence.
        first: What is run before it.
        not_run: Why it is not run; None if it is.
    """

    language: str
    text: str
    first: tuple[str, ...]
    not_run: str | None


def blocks_of(page: Path) -> list[Block]:
    found = []
    for comments, indent, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        first = tuple(re.findall(r"<!-- first: (.*?) -->", comments))
        reasons = re.findall(r"<!-- not run: (.*?) -->", comments)
        text = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        found.append(Block(language, text, first, reasons[0] if reasons else None))
    return found


TRAINING_MUCH = (
    "compare", "delivery", "flows", "hooks", "models", "operations", "own-environment", "own-script", "prune", "results",
    "resume", "study", "sweep", "train",
)  # fmt: skip
"""Pages of many trainings: followed each night."""
RUN = [
    page
    for page in PAGES
    if any(block.language in ("bash", "python") and block.not_run is None for block in blocks_of(page))
]
SOON = [page for page in RUN if page.stem not in TRAINING_MUCH]
SMALLER = (
    ("total_timesteps=10_000, eval_freq=5_000", "total_timesteps=2_048, eval_freq=1_024"),
    ("learn(10_000,", "learn(2_048,"),
    ("learn(100_000)", "learn(2_048)"),
    ("--timesteps 10000", "--timesteps 2048"),
    ("total_timesteps=4000", "total_timesteps=2048"),
)
"""Budgets that are cut in `make test`; each night pages are followed to the letter."""


@pytest.fixture
def folder(tmp_path):
    """Where a reader stands: the project's configurations and examples are here, with small budgets."""
    for name in ("examples", "deploy", "docs"):
        (tmp_path / name).symlink_to(PROJECT / name)
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    for path in (tmp_path / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        config["training"] |= SMALL
        config["evaluation"] = {"episodes": 5}
        config.setdefault("tracking", {})["video"] = False
        hyperparameters = config["agent"].get("hyperparameters") or {}
        if hyperparameters.get("learning_starts", 0) > 1000:
            hyperparameters["learning_starts"] = 1000
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


def run(command: list[str], folder: Path, programs: list[Path], what: str) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(programs[-1].parent),
    }
    environment |= {"RLTRACK_SIGNING_KEY": "0" * 64, "HOME": str(folder / "home")}
    environment.pop("RLTRACK_ROOT", None)
    (folder / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{what}\nended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def follow(page: Path, folder: Path, programs: list[Path], smaller: tuple[tuple[str, str], ...] = ()) -> None:
    for block in blocks_of(page):
        if block.not_run is not None:
            continue
        for command in block.first:
            run(["bash", "-euo", "pipefail", "-c", command], folder, programs, command)
        text = block.text
        for budget, less in smaller:
            text = text.replace(budget, less)
        if block.language == "bash":
            run(["bash", "-euo", "pipefail", "-c", text], folder, programs, text)
        elif block.language == "python":
            run([str(programs[0] / "python"), "-c", text], folder, programs, text)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", SOON, ids=lambda page: page.stem)
def test_page_can_be_followed(page, folder, forks):
    """Each command is a fork of a process that has imported everything; each night they are real ones."""
    follow(page, folder, [forks.programs, Path(sys.executable).parent], SMALLER)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_page_can_be_followed_to_the_letter(page, folder):
    follow(page, folder, [Path(sys.executable).parent])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        known = block.language in ("bash", "python", "yaml", *SHOWN)
        assert known, f"{page.name}: a block of '{block.language}'; say what it is"
        if block.not_run is not None:
            assert len(block.not_run) > 10, f"{page.name}: {block.text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_in_it_are_valid(page):
    from rltrack.config import TrainingConfig
    from rltrack.plain_data import merge
    from rltrack.studies.space import SweepSection

    base = {"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 1000}}
    for block in blocks_of(page):
        if block.language == "yaml" and block.not_run is None:
            tree = yaml.safe_load(block.text)
            sweep = tree.pop("sweep", None)
            if sweep is not None:
                SweepSection.model_validate(sweep)
            TrainingConfig.from_mapping(merge(base, tree), f"{page.name}: {block.text}")


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


def test_every_flag_in_it_exists():
    from typer.testing import CliRunner

    from rltrack.cli import app

    @functools.cache
    def help_of(*command):
        return CliRunner().invoke(app, [*command, "--help"]).output

    for page in PAGES:
        for line in re.findall(r"^rltrack (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            words = line.partition("#")[0].split()
            if not words or words[0].startswith(("-", "[")):
                continue
            command = words[: 2 if words[0] in ("flow", "benchmark") else 1]
            for word in words:
                if word.startswith("--"):
                    assert word.partition("=")[0] in help_of(*command), f"{page.name}: rltrack {line}"


def test_generated_pages_are_up_to_date():
    result = subprocess.run([sys.executable, "-c", "import sys; sys.path.insert(0, 'docs'); import generate\n"
        "for name, page in generate.PAGES.items():\n"
        "    assert page() == (generate.HERE / name).read_text(), f'{name}: run python docs/generate.py'"],
        cwd=PROJECT, capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]


def test_every_page_is_in_the_navigation():
    text = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in text, page


def test_pages_are_built_strictly(tmp_path):
    pytest.importorskip("material")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").exists()
