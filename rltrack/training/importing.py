"""Turns an agent that another program trained into a run: finished, evaluated, with a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, NameTaken
from rltrack.runs import Root, RunDirectory
from rltrack.training.live import Due
from rltrack.training.trainer import Trainer
from rltrack.zoo_logs import AgentFiles


def import_agent(
    files: AgentFiles,
    *,
    root: str | Path | None = None,
    name: str | None = None,
    trust: bool = False,
    notify: Callable[[str], None],
) -> RunDirectory:
    """Make a run of an agent's files.

    Args:
        files: The model, its statistics, and what is known about it.
        root: Folder of all runs.
        name: The run's name; omitted: made from algorithm and environment.
        trust: Whether the files come from a source that the user trusts: loading them runs the code in them.
        notify: Called with each message.

    Raises:
        ConfigurationError: Without `trust`, or if the files cannot become a run; nothing was written.
        NameTaken: If there is a run of that name.
    """
    if not trust:
        raise ConfigurationError(
            f"{files.model.name} holds pickles, and loading them runs whatever code is in them, as you. If you trust their "
            "author, add --trust."
        )
    home = Root(root)
    if name is not None and name in home.names():
        raise NameTaken(f"Run '{name}' exists. Choose another name with --name.")
    from rltrack.agents.sb3_import import read_sb3  # on demand: it imports torch

    found = read_sb3(files)
    for note in found.notes:
        notify(note)
    training = {"total_timesteps": max(1, found.env_steps)}
    config = TrainingConfig.from_mapping({**found.config, "name": name, "training": training}, source=str(files.model))
    trainer = Trainer(config, root=root)
    try:
        live = trainer.prepare()
        live.start()
        agent = live.agent
        agent.restore(found.state)
        agent.restore({"counters": {"num_timesteps": found.env_steps, "episodes": [], "successes": []}})
        live.progress.env_steps = training["total_timesteps"]
        while (due := live.due()) is not Due.END:
            if due is Due.CHUNK:
                raise ConfigurationError(f"{files.model} cannot become a run: its budget is not spent.")
            live.perform(due)
        live.finish()
        live.close()
    finally:
        trainer.close()
    run = trainer.run_directory
    assert run is not None
    return run
