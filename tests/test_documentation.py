"""The documentation, followed literally each night: each page's blocks are run in their order, in a folder of their own.

In `make test` only the README is followed. Of all pages, the real parser reads the commands, configurations are validated, and
programs are compiled and compared with what rltrack has.

``bash`` and ``python`` blocks are run, ``yaml`` blocks are validated; ``text``, ``console`` and ``sh`` show what one sees. A block
that cannot be run here has a comment before it, which readers do not see: ``<!-- not run: why -->``. ``<!-- first: command -->`` is
run before a block: what a reader of this page has done already. Configurations are the shipped ones, with small budgets.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import os
import re
import shlex
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
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^( *)```(\w*)[^\n]*\n(.*?)^\2```$", flags=re.DOTALL | re.MULTILINE)
SHOWN = ("text", "console", "sh", "mermaid")
BASE = {"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 1000}}
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


RUN = [
    page
    for page in PAGES
    if any(block.language in ("bash", "python") and block.not_run is None for block in blocks_of(page))
]
"""Followed each night, to the letter."""
SMALLER = (("total_timesteps=20_000, eval_freq=5_000", "total_timesteps=2_048, eval_freq=1_024"),)
"""Budgets of the README that are cut in `make test`."""


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
def test_the_readme_can_be_followed(folder, forks):
    """One page is followed in every run: a training, its delivery and a promotion, in forks of a process with all imports."""
    follow(PROJECT / "README.md", folder, [forks.programs, Path(sys.executable).parent], SMALLER)


def test_the_targets_that_the_readme_names_exist():
    named = set(re.findall(r"^make (\w+)", (PROJECT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
    existing = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"train", "test"} <= named <= existing


def test_the_picture_of_the_terminal_shows_valid_commands():
    picture = (DOCS / "images" / "terminal.svg").read_text(encoding="utf-8")
    assert len(picture) < 300_000
    for command in re.findall(r"<title>(.*)</title>", picture)[0].split("; "):
        assert f">{command}<" in picture.replace("> rltrack", ">rltrack"), command
        parse(shlex.split(command)[1:])


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_page_can_be_followed_to_the_letter(page, folder):
    follow(page, folder, [Path(sys.executable).parent])


def commands_in(text: str) -> list[list[str]]:
    """Return the words of each ``rltrack`` command in a block or between backticks; ``$ `` before it is a prompt."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [line for line in lines if re.match(r"(\$ )?rltrack [^|]", line)]
    commands = []
    for line in found:
        words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
        end = next((n for n, word in enumerate(words) if word in ("||", "&&", "|", ">", ";")), len(words))
        commands.append(words[:end])
    return commands


@functools.cache
def command_line():
    import typer

    from rltrack.cli import app

    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse a command with the real parser, and run nothing. Files are made by commands before it, so that they need not exist."""
    command = command_line()
    context = command.make_context("rltrack", list(words))
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_it_exist_and_their_options_are_valid(page, monkeypatch):
    """The cheap twin of following it: the real parser reads each command, and the configuration each ``--set``."""
    monkeypatch.chdir(PROJECT)
    text = page.read_text(encoding="utf-8")
    written = [*blocks_of(page), *re.findall(r"`(rltrack [^`]*--[^`]*)`", text)]
    for words in [words for item in written for words in commands_in(getattr(item, "text", item))]:
        if (
            words == ["--help"]
            or words[0] == "--install-completion"
            or any("…" in word or "[" in word[:1] for word in words)
        ):
            continue
        try:
            parse(words)
        except Exception as error:
            raise AssertionError(
                f"{page.name}: rltrack {shlex.join(words)}: {getattr(error, 'message', error)}"
            ) from None
        for key, value in itertools.pairwise(words):
            if key == "--set":
                valid(value, f"{page.name}: {value}")


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_programs_in_it_compile_and_name_what_exists(page):
    """The cheap twin of running them: syntax, names of rltrack, and keywords of its functions."""
    for block in blocks_of(page):
        if block.language == "python":
            check_program(block.text, page.name)
    shell = "\n".join(block.text for block in blocks_of(page) if block.language == "bash")
    done = subprocess.run(["bash", "-n"], input=shell, capture_output=True, text=True)
    assert done.returncode == 0, f"{page.name}: {done.stderr}"


def check_program(text: str, name: str) -> None:
    tree = ast.parse(text, name)
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rltrack":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{name}: {node.module} has no {alias.name}"
                names[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import) and any(alias.name == "rltrack" for alias in node.names):
            names["rltrack"] = importlib.import_module("rltrack")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rltrack":
            assert hasattr(names["rltrack"], node.attr), f"{name}: rltrack has no {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "rltrack":
            function = getattr(names["rltrack"], called.attr)
        else:
            function = names.get(called.id) if isinstance(called, ast.Name) else None
        if function is None:
            continue
        parameters = inspect.signature(function).parameters
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            for keyword in node.keywords:
                assert keyword.arg is None or keyword.arg in parameters, f"{name}: {ast.unparse(node)}: {keyword.arg}"


def valid(override: str, where: str) -> None:
    """Raise if a configuration cannot take ``KEY=VALUE``."""
    from rltrack.config import TrainingConfig
    from rltrack.plain_data import merge

    key, _, value = override.partition("=")
    if key.startswith("sweep."):
        from rltrack.studies.space import SweepSection

        assert key.split(".")[1] in SweepSection.model_fields, where
        return
    tree = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        tree = {part: tree}
    TrainingConfig.from_mapping(merge(BASE, tree), where)


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

    for block in blocks_of(page):
        if block.language == "yaml" and block.not_run is None:
            tree = yaml.safe_load(block.text)
            sweep = tree.pop("sweep", None)
            if sweep is not None:
                SweepSection.model_validate(sweep)
            TrainingConfig.from_mapping(merge(BASE, tree), f"{page.name}: {block.text}")


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


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
