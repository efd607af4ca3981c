"""Policies as ONNX: onnxruntime acts as the model does, in batches of any size."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from rltrack.cli import run_command
from tests.exchange.plain import actions_of
from tests.exchange.test_sb3_files import CASES, inputs_of

pytestmark = pytest.mark.slow


@pytest.mark.nightly
@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "DQN"])
def test_onnx_acts_as_the_model(trained, own_root, tmp_path, algorithm, capsys):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    import rltrack

    trained(algorithm)
    path = tmp_path / "policy.onnx"
    assert (
        run_command(["--root", str(own_root), "export", "first@last", "--format", "onnx", "--output", str(path)]) == 0
    )
    assert "torchvision" not in capsys.readouterr().err
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = inputs_of(CASES[algorithm][2]["id"], masked=False)
    expected = actions_of(rltrack.load_agent("first", "last", root=own_root), given)
    observations = given["observations"].astype(np.float32)
    for batch in (1, 7, 30):
        found = session.run(None, {"observation": observations[:batch]})[0]
        assert np.allclose(found.reshape(batch, -1), expected[:batch].reshape(batch, -1), atol=1e-4)


def test_what_is_missing_or_impossible_is_reported(trained, own_root, capsys, monkeypatch):
    trained("RecurrentPPO")
    command = ["--root", str(own_root), "export", "first@last", "--format", "onnx"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None if name == "onnx" else object())
    assert run_command(command) == 2
    assert "pip install 'rltrack[onnx]'" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: object())
    assert run_command(command) == 1
    assert "cannot be written as ONNX" in capsys.readouterr().err
