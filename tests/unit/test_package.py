"""What a wheel holds: nothing but `rltrack`, and everything that it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rltrack

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_has_one_package_with_all_its_data(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "rltrack"):  # a build leaves folders behind
        (source / name).symlink_to(PROJECT / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"rltrack"}
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "rltrack").rglob("*.py")}
    assert modules <= set(names)
    assert {"rltrack/py.typed", "rltrack/flows/prefect.yaml"} <= set(names)
    assert f"\nVersion: {rltrack.__version__}\n" in metadata
    assert "License-Expression: MIT" in metadata


def test_links_at_the_top_lead_into_the_package():
    assert (PROJECT / "flows").resolve() == PROJECT / "rltrack" / "flows"
    assert (PROJECT / "deploy" / "prefect.yaml").resolve() == PROJECT / "rltrack" / "flows" / "prefect.yaml"


def test_everything_is_locked_by_its_hash():
    for file in ("requirements.lock", "deploy/requirements.lock"):
        entries = re.split(r"\n(?=\S)", (PROJECT / file).read_text().strip())
        for entry in entries:
            assert re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+", entry), entry
            assert "--hash=sha256:" in entry, entry
    assert "torch==2.13.0" in (PROJECT / "requirements.lock").read_text()
    image = re.findall(r"^(\S+?)==", (PROJECT / "deploy" / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert [name for name in image if name == "torch" or (name.startswith("nvidia-") and name != "nvidia-ml-py")] == []
