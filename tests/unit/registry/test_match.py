"""How policies play for a promotion."""

from __future__ import annotations

import sys
from pathlib import Path

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


@pytest.mark.slow
def test_the_champion_of_a_script_is_loaded_and_its_configuration_builds_where_flow_runs_are(
    tmp_path, monkeypatch, own_root
):
    """A worker's flow run has a temporary folder, and has imported nothing of the project when it loads the policy."""
    from rltrack import TrainingLoop
    from rltrack.agents.factory import build
    from rltrack.cleanup import close_all
    from rltrack.config import TrainingConfig
    from rltrack.errors import ConfigurationError
    from rltrack.registry.loading import _load
    from rltrack.registry.models import policy_of, write_model
    from rltrack.runs import Root

    project = Path(__file__).resolve().parents[3] / "examples" / "own_project"

    def forget():
        return [sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("tank", "train")]

    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    with monkeypatch.context() as script:
        script.syspath_prepend(str(project))
        import train

        model, callbacks = train.build()
        TrainingLoop(
            model, callbacks=callbacks[:1], make_env=train.make_tank, total_timesteps=256, name="tank", video=False
        ).run()
    write_model(policy_of(Root().find("tank"), "last"), tmp_path / "model")
    forget()
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tank")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as unknown:
        _load(tmp_path / "model", "The champion of 'tank'")
    message = str(unknown.value)
    assert message.startswith("The champion of 'tank' cannot be loaded here: The policy uses tank.extractor.Difference")
    assert f"no module 'tank'. Searched: {sys.path[0]}, " in message
    assert str(tmp_path) in message, "the current folder"
    assert "RLTRACK_PROJECT" in message
    assert "broken" not in message
    monkeypatch.delenv("RLTRACK_ALLOWED_MODULES")
    with pytest.raises(ConfigurationError, match="set RLTRACK_ALLOWED_MODULES=tank"):
        _load(tmp_path / "model", "The champion of 'tank'")
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tank")
    try:
        for setting in (
            lambda: monkeypatch.setenv("RLTRACK_PROJECT", str(project)),
            lambda: monkeypatch.chdir(project),
        ):
            monkeypatch.delenv("RLTRACK_PROJECT", raising=False)
            monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(project)])
            setting()
            loaded = _load(tmp_path / "model", "the champion")
            assert loaded.source.startswith("tank@")
            forget()
        agent, env = build(TrainingConfig.from_mapping(loaded.config))
        close_all(env)
        assert type(agent.model.policy.features_extractor).__module__ == "tank.extractor"
    finally:
        forget()
