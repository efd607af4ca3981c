"""How policies play for a promotion."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mlflow")
match = pytest.importorskip("rltrack.registry.match")


def test_a_policy_plays_on_the_threads_of_its_configuration(monkeypatch):
    """On torch's default, one for each core, a promotion took ten times as long on a busy machine."""
    seen = []
    monkeypatch.setattr(match, "play_episodes", lambda *arguments, **options: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spaces = type("Policy", (), {"policy": {"observation_space": None}})()
        monkeypatch.setattr(match, "evaluation_environments", lambda *arguments: None)
        monkeypatch.setattr(match, "close_all", lambda env: None)
        config = {
            "agent": {"algorithm": "PPO"},
            "environment": {"id": "CartPole-v1"},
            "training": {"total_timesteps": 9},
        }
        match.play(spaces, config, [1, 2])
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
