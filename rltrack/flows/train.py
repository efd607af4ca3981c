"""Training as a Prefect flow: set-up, chunks, evaluations and checkpoints are tasks with retries.

The tasks call the methods of `LiveTraining`. Each aims at an absolute number of env steps, so that repeating
finished work does nothing; after a failure the run is restored from its newest version and trains the missing part again,
bit for bit. Prefect's results and caches are not used: the run's folder has the state.
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
from rltrack.errors import RltrackError, RunBusy
from rltrack.flows.installation import flow_run_tags
from rltrack.flows.links import flow_run_page
from rltrack.flows.page import Page, PageHook
from rltrack.flows.redaction import keep_secrets_out_of_logs, redacting
from rltrack.flows.retries import RETRIED
from rltrack.flows.streams import use_second_random
from rltrack.flows.training import Outcome, Training, check_attempts, check_parameters
from rltrack.runs import Root, RunDirectory, run_stem
from rltrack.tracking.delivery import wait_until_delivered
from rltrack.training.live import Due, LiveTraining
from rltrack.training.marks import Mark
from rltrack.training.progress import TrainingState
from rltrack.training.steering import STOPPED

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
    live = training.live()
    return {"env_steps": live.progress.env_steps, "finished": live.was_finished}


@task(name="train chunk", task_run_name="train from {env_steps:,} to {until}", **RETRIED)
@redacting
def train_chunk(training: Training, env_steps: int, until: str, mark: Mark) -> int:
    """Train up to a mark, or until something else is due."""
    training.perform(Due.CHUNK, env_steps, mark)
    return training.live().progress.env_steps


@task(name="evaluate", task_run_name="evaluate at {env_steps:,}", **RETRIED)
@redacting
def evaluate(training: Training, env_steps: int, due: Due) -> float | None:
    """Evaluate the policy; return the mean return."""
    training.perform(due, env_steps)
    last = training.live().progress.last_evaluation
    return None if last is None else last.mean


@task(name="checkpoint", task_run_name="checkpoint at {env_steps:,}", **RETRIED)
@redacting
def checkpoint(training: Training, env_steps: int) -> None:
    """Begin to commit a version from which training can resume."""
    training.perform(Due.CHECKPOINT, env_steps)


@task(name="finish", task_run_name="finish", **RETRIED)
@redacting
def finish(training: Training, env_steps: int) -> None:
    """Commit the last version, and record how training ended."""
    training.perform(Due.END, env_steps)


@task(name="deliver", task_run_name="deliver", cache_policy=NO_CACHE, persist_result=False)
@redacting
def deliver(live: LiveTraining, run: RunDirectory) -> bool:
    """Wait until everything is in MLflow and TensorBoard, with a bound; what is missing then is delivered later."""
    delivered = wait_until_delivered(run, live.wait_for_tracking, DELIVERY_SECONDS)
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


@flow(name="train", flow_run_name=_flow_run_name, persist_result=False)
@redacting
def train(config: TrainingConfig, run: str | None = None, restarts: Restarts = 0) -> Any:
    """Train what a configuration describes; an existing run of its name is resumed.

    Args:
        config: The training.
        run: The run's name, instead of the configuration's.
        restarts: Number of automatic restarts so far.

    Returns:
        Completed; or Cancelled, named "Stopped" (by the user) or "Preempted" (by a signal), with a resumable version.
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
    """Train inside a flow run; return its final state."""
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
    log, page = get_run_logger(), Page(flow_run_id, name)
    training = Training(
        config.model_copy(update={"name": name, "tracking": tracking}),
        Root(),
        console=not deployed,
        hooks=[*hooks, PageHook(page, get_run_logger)],
    )
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
                live = _perform_all(training)
                training.close()
                deliver(live, training.directory)
            except Pause:  # suspended from outside: Prefect allows no further task
                training.stop("suspended")
                raise
            page.show_summary(training.directory)
            outcome = Outcome(training.directory, live.plan.statistics, live.was_finished)
            return _final_state(outcome, flow_run_id)
    finally:
        training.close()
        page.close()


def _perform_all(training: Training) -> LiveTraining:
    """Go from boundary to boundary to the end, a task for each thing that is due; return the training that came there."""
    while not (live := training.live()).was_finished:
        due, env_steps = live.due(), live.progress.env_steps
        if due is Due.CHUNK:
            mark = live.next_mark()
            train_chunk(training, env_steps, mark.text, mark)
        elif due is Due.CHECKPOINT:
            checkpoint(training, env_steps)
        elif due is Due.END:
            finish(training, env_steps)
            return training.live()
        else:
            evaluate(training, env_steps, due)
    return live


def _final_state(outcome: Outcome, flow_run_id: str) -> State[Any]:
    """Return the flow run's state, with the outcome: what the training's means to Prefect."""
    statistics = outcome.statistics
    message = f"{statistics.reason}; {statistics.env_steps:,} env steps"
    final = statistics.final_evaluation
    if final is not None:
        message += f", mean return {final.mean:.6g}"
    if statistics.state is not TrainingState.STOPPED:
        return Completed(message=message, data=outcome)
    message += f". Go on: rltrack resume {outcome.directory.name}"
    now = _state_now(flow_run_id)
    if now is not None and now.is_paused():
        raise Pause(state=now)  # suspended: `rltrack up`, or the user, resumes the same flow run
    by_person = statistics.reason.startswith(("SIGINT", STOPPED)) or (now is not None and now.is_cancelling())
    return Cancelled(name="Stopped" if by_person else "Preempted", message=message, data=outcome)


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


def train_here(config: TrainingConfig, root: Path) -> Outcome:
    """Run the flow in this process; return how its training ended.

    Args:
        config: The training; without a name it gets a new unique one.
        root: Folder of all runs.

    Raises:
        RltrackError: As `rltrack.training.trainer.Trainer.train`.
    """
    name = config.name
    if name is None:
        name = Root(root).create(None, default_name(config)).name
    state: State[Any] = cast(Any, train)(config, run=name, return_state=True)
    if state.is_failed() or state.is_crashed():
        state.result()
    if state.name == "Busy":
        raise RunBusy(state.message)
    outcome = state.result(raise_on_failure=False) if state.is_final() else None
    if not isinstance(outcome, Outcome):
        raise RltrackError(
            f"The server keeps the state '{state.name}' for this flow run, which was set elsewhere. How the training ended: "
            f"`rltrack show {name}`."
        )
    return outcome
