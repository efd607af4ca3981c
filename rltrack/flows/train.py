"""Training as a Prefect flow: set-up, chunks, evaluations and checkpoints are tasks with retries.

The tasks call `TrainingLoop`'s methods. Each aims at an absolute number of env steps, so that repeating finished work does
nothing; after a failure the run is restored from its newest version and trains the missing part again, bit for bit. Prefect's
results and caches are not used: the run's folder has the state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Crashed
from pydantic import Field
from websockets.asyncio import connection as _connection  # noqa: F401  (loaded, so that `use_second_random` finds it)

from rltrack.config import TrainingConfig, check_run_name
from rltrack.errors import RunBusy
from rltrack.flows.installation import flow_run_tags
from rltrack.flows.links import flow_run_page
from rltrack.flows.page import Page
from rltrack.flows.redaction import keep_secrets_out_of_logs, redacting
from rltrack.flows.retries import RETRIED
from rltrack.flows.streams import use_second_random
from rltrack.flows.training import Training, check_attempts, check_parameters
from rltrack.runs import Root, RunDirectory, run_stem
from rltrack.tracking.delivery import wait_until_delivered
from rltrack.training.progress import TrainingState, TrainingStatistics
from rltrack.training.strategies import Mark
from rltrack.training.train_loop import Due, TrainingLoop

DELIVERY_SECONDS = 120.0
MAX_RESTARTS = 100
Restarts = Annotated[int, Field(ge=0, le=MAX_RESTARTS)]
"""Number of automatic restarts of a run: the server refuses more, even if the flow dies before it can count."""

use_second_random()
keep_secrets_out_of_logs()


@task(name="set up", task_run_name="set up", **RETRIED)
@redacting
def set_up(training: Training) -> dict[str, Any]:
    """Build agent and environment, open the run, restore its newest version if it has one."""
    loop = training.open()
    return {"env_steps": loop.progress.env_steps, "finished": training.was_finished}


@task(name="train chunk", task_run_name="train from {env_steps:,} to {until}", **RETRIED)
@redacting
def train_chunk(training: Training, env_steps: int, until: str, mark: Mark) -> int:
    """Train up to a mark, or until something else is due; return the env steps reached."""
    training.carry_out(Due.CHUNK, env_steps, mark)
    return training.open().progress.env_steps


@task(name="evaluate", task_run_name="evaluate at {env_steps:,}", **RETRIED)
@redacting
def evaluate(training: Training, env_steps: int, due: Due) -> float | None:
    """Evaluate the policy; return the mean return."""
    training.carry_out(due, env_steps)
    last = training.open().progress.last_evaluation
    return None if last is None else last.mean


@task(name="checkpoint", task_run_name="checkpoint at {env_steps:,}", **RETRIED)
@redacting
def checkpoint(training: Training, env_steps: int) -> None:
    """Start to commit a resumable version."""
    training.carry_out(Due.CHECKPOINT, env_steps)


@task(name="finish", task_run_name="finish", **RETRIED)
@redacting
def finish(training: Training, env_steps: int) -> None:
    """Commit the last version, and record how training ended."""
    training.carry_out(Due.END, env_steps)


@task(name="deliver", task_run_name="deliver", cache_policy=NO_CACHE, persist_result=False)
@redacting
def deliver(loop: TrainingLoop, run: RunDirectory) -> bool:
    """Wait until everything is in MLflow and TensorBoard, with a timeout; the rest is delivered later."""
    delivered = wait_until_delivered(run, loop.wait_for_tracking, DELIVERY_SECONDS)
    if not delivered:
        get_run_logger().warning("Not everything is in MLflow yet; `rltrack sync --all` shows why, and delivers it.")
    return delivered


def _flow_run_name() -> str:
    """Return the run's name as the flow run's; if the parameters give none, the flow itself raises the error."""
    parameters, flow_run_id = runtime.flow_run.parameters, str(runtime.flow_run.id)
    try:
        return run_name(parameters["config"], parameters.get("run"), flow_run_id)
    except Exception:
        return f"train-{flow_run_id[:8]}"


def run_name(config: TrainingConfig | Mapping[str, Any], run: str | None, flow_run_id: str) -> str:
    """Return the run's name: the given one, or one from algorithm, environment, seed and the flow run's id.

    Raises:
        ConfigurationError: If the given name cannot be a run's.
    """
    if isinstance(config, Mapping):
        config = TrainingConfig.from_mapping(config)
    if run or config.name:
        return check_run_name(str(run or config.name))
    return f"{run_stem(default_name(config))}-{flow_run_id[:8]}"


def default_name(config: TrainingConfig) -> str:
    """Return the first part of a name if none is given."""
    return f"{config.agent.algorithm}-{config.environment.id}-s{config.seed}"


trainings: list[Training] = []
"""The trainings of this process's flow runs, for `train_here`."""


@flow(name="train", flow_run_name=_flow_run_name, persist_result=False)
@redacting
def train(config: TrainingConfig, run: str | None = None, restarts: Restarts = 0) -> Any:
    """Train what a configuration describes; an existing run of its name is resumed.

    Args:
        config: The training.
        run: The run's name, instead of the configuration's.
        restarts: Number of automatic restarts so far.

    Returns:
        Completed; or Cancelled, named "Stopped" (by a person) or "Preempted" (by a signal), with a resumable version.
    """
    check_if_deployed(config)
    return run_training(config, run_name(config, run, str(runtime.flow_run.id)))


def check_if_deployed(config: TrainingConfig) -> None:
    """Refuse, in a deployment's run, what this worker does not allow, before anything of the configuration is used.

    Raises:
        NotAllowed: As `rltrack.flows.training.check_parameters`.
    """
    if runtime.deployment.id is not None:
        check_parameters(config)


def run_training(config: TrainingConfig, name: str, hooks: Sequence[Any] = ()) -> Any:
    """Train inside a flow run; return its final state.

    Args:
        config: The training.
        name: The run's name.
        hooks: Further hooks.
    """
    flow_run_id = str(runtime.flow_run.id)
    api = str(PREFECT_API_URL.value() or "")
    deployed = runtime.deployment.id is not None
    check_if_deployed(config)
    check_run_name(name)
    tags = {
        **config.tracking.tags,
        "prefect.flow_run_id": flow_run_id,
        "prefect.flow_run_url": flow_run_page(api, flow_run_id),
        **({"prefect.deployment": str(runtime.deployment.name)} if deployed else {}),
    }
    tracking = config.tracking.model_copy(update={"tags": tags})
    training = Training(
        config.model_copy(update={"name": name, "tracking": tracking}), Root(), console=not deployed, hooks=hooks
    )
    trainings.append(training)
    training.page = page = Page(flow_run_id, name)
    log = get_run_logger()
    tag_flow_run(flow_run_id, flow_run_tags(training.root, name))
    try:
        with training.control.signals(chain=False):
            check_attempts(training.directory)
            try:
                set_up(training)
            except RunBusy as error:
                log.warning(str(error))
                return Cancelled(name="Busy", message=str(error))
            mark_dead_flow_runs(flow_run_tags(training.root, name), flow_run_id)
            try:
                _train(training)
                loop = training.close()
                assert loop is not None, "the training is open until here"
                deliver(loop, training.directory)
            except Pause:  # suspended by `rltrack down` or a person: Prefect allows no further task
                training.stop("suspended")
                raise
            page.show_summary(training.directory)
            return _final_state(loop.statistics, training, flow_run_id)
    finally:
        training.close()
        page.close()


def _train(training: Training) -> None:
    """Run a task for each thing that is due, from boundary to boundary."""
    if training.was_finished:
        return
    while True:
        loop = training.open()
        due, env_steps = loop.due(), loop.progress.env_steps
        if due is Due.CHUNK:
            mark = loop.next_mark()
            train_chunk(training, env_steps, mark.text, mark)
        elif due is Due.CHECKPOINT:
            checkpoint(training, env_steps)
        elif due is Due.END:
            finish(training, env_steps)
            return
        else:
            evaluate(training, env_steps, due)


def _final_state(statistics: TrainingStatistics, training: Training, flow_run_id: str) -> State[Any]:
    """Return the flow run's final state for the training's."""
    message = f"{statistics.reason}; {statistics.env_steps:,} env steps"
    final = statistics.final_evaluation
    if final is not None:
        message += f", mean return {final.mean:.6g}"
    if statistics.state is not TrainingState.STOPPED:
        return Completed(message=message)
    message += f". Resume: rltrack resume {training.config.name}"
    now = _state_now(flow_run_id)
    if now is not None and now.is_paused():
        raise Pause(state=now)  # suspended: `rltrack up`, or a person, resumes the same flow run
    by_person = "SIGINT" in statistics.reason or (now is not None and now.is_cancelling())
    return Cancelled(name="Stopped" if by_person else "Preempted", message=message)


def _state_now(flow_run_id: str) -> State[Any] | None:
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(flow_run_id).state  # type: ignore[arg-type]
    except Exception:
        return None


def tag_flow_run(flow_run_id: str, tags: Sequence[str]) -> None:
    """Tag a flow run with the root and the run that it trains; errors of the server are ignored."""
    try:
        with get_client(sync_client=True) as client:
            known = client.read_flow_run(UUID(flow_run_id)).tags
            client.update_flow_run(UUID(flow_run_id), tags=[*known, *(tag for tag in tags if tag not in known)])
    except Exception as error:
        logging.getLogger("rltrack").debug(f"Flow run {flow_run_id} was not tagged: {error}")


def mark_dead_flow_runs(tags: Sequence[str], flow_run_id: str) -> None:
    """Mark other flow runs that trained this run of this root as crashed: this one holds its lock, so they are dead.

    Args:
        tags: Tags of root and run. Flow runs that lack one of them are not changed, whatever their names.
        flow_run_id: The id of this flow run.
    """
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    tags=FlowRunFilterTags(all_=list(tags)),
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
                    ),
                )
            )
            for other in found:
                if str(other.id) != flow_run_id:
                    message = f"Its process is gone; flow run {flow_run_id} resumed the run."
                    client.set_flow_run_state(other.id, Crashed(name="Superseded", message=message), force=True)
    except Exception as error:
        logging.getLogger("rltrack").debug(f"Dead flow runs of {tags} were not marked: {error}")


def train_here(config: TrainingConfig, root: Path) -> Training:
    """Run the flow in this process; return its training, closed.

    Args:
        config: The training; without a name it gets a new unique one.
        root: Folder of all runs.

    Raises:
        RltrackError: As `rltrack.training.trainer.Trainer.train`.
    """
    name = config.name
    if name is None:
        name = Root(root).create(None, default_name(config)).name
    trainings.clear()
    state: State[Any] = cast(Any, train)(config, run=name, return_state=True)
    if state.is_failed() or state.is_crashed():
        state.result()
    if state.name == "Busy":
        raise RunBusy(state.message)
    return trainings[-1]
