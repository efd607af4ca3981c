"""One trial of a sweep as a flow: trains its runs, reports evaluations to Optuna, stores the result once.

The parameters name only the sweep and the trial's number; everything else is in the trials' database, which every worker
reaches (`RLTRACK_SWEEP_STORAGE`; on one machine a file under the root).
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Completed
from pydantic import Field

from rltrack.config import TrainingConfig
from rltrack.flows.redaction import redacting
from rltrack.flows.train import Restarts, check_if_deployed, run_training
from rltrack.runs import Root, RunDirectory
from rltrack.studies.search import Search, trial_name
from rltrack.studies.trials import ReportHook, run_trial


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    return trial_name(parameters["sweep"], parameters["number"])


@flow(name="trial", flow_run_name=_flow_run_name, persist_result=False)
@redacting
def trial(sweep: str, number: Annotated[int, Field(ge=0)], restarts: Restarts = 0) -> Any:
    """Run a trial of a sweep, or resume it.

    Args:
        sweep: The sweep's name.
        number: Which trial.
        restarts: Number of automatic restarts so far.

    Returns:
        Completed, named "Complete", "Pruned" or "TrialFailed" (its values cannot be trained); or as `rltrack.flows.train.train`, if
        it was stopped.
    """
    root = Root()
    search = Search(sweep, root).open()
    if number not in search.unfinished():
        return Completed(name="AlreadyKnown", message=f"Trial {number} of '{sweep}' has a result.")
    ended: list[Any] = []

    def train(config: TrainingConfig, hook: ReportHook) -> RunDirectory | None:
        assert config.name is not None, "a sweep names its runs"
        check_if_deployed(config)  # it comes from the sweep's database, to which others may write
        state = run_training(config, config.name, [hook])
        ended.append(state)
        return root.find(config.name) if state.name == "Completed" else None

    result = run_trial(search, number, train)
    if result.state == "stopped":
        return ended[-1]
    value = "" if result.value is None else f"objective {result.value:.6g}: "
    log = get_run_logger()
    (log.warning if result.state == "failed" else log.info)(f"{result.state}: {value}{result.reason}")
    name = {"complete": "Complete", "pruned": "Pruned", "failed": "TrialFailed"}[result.state]
    return Completed(name=name, message=f"{value}{result.reason}")
