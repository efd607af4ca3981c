"""Attacks through a real Prefect server: what a deployment's run does with hostile parameters, and what it tells."""

from __future__ import annotations

import errno
import logging
import time
import traceback

import pytest
from pydantic import BaseModel, ValidationError

from rltrack.errors import CheckpointFailed, ConfigurationError, RegistryUnavailable, RunBusy
from rltrack.flows import retries
from rltrack.flows.redaction import keep_secrets_out_of_logs, redacting, without_secrets_in
from rltrack.runs import Root
from rltrack.secrets import HIDDEN, with_environment_values

SECRET = "s3cr3t value/of mine"


@pytest.fixture
def taken(monkeypatch):
    monkeypatch.setenv("GUARDED_KEY", SECRET)
    with_environment_values({"api_key": {"env": "GUARDED_KEY"}})


def parameters(**environment):
    return {
        "config": {
            "agent": {"algorithm": "PPO", "device": "cpu", "hyperparameters": {"n_steps": 64, "batch_size": 32}},
            "environment": environment,
            "training": {"total_timesteps": 64, "eval_freq": None},
            "tracking": {"video": False},
        },
        "run": "hostile",
    }


def deployed(client, flow, given):
    """Run a flow as a worker does that took a deployment's run up; return its final state as the server has it, and its logs."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.flow_engine import run_flow

    flow_id = client.create_flow(flow)
    deployment = client.create_deployment(flow_id, name=f"hostile-{time.time_ns()}", enforce_parameter_schema=False)
    made = client.create_flow_run_from_deployment(deployment, parameters=given)
    run_flow(flow, flow_run=made, parameters=dict(given), return_type="state")
    asked = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[made.id]))
    deadline, lines = time.monotonic() + 20, []
    while not any("Finished in state" in line for line in lines) and time.monotonic() < deadline:
        time.sleep(0.3)
        lines = [log.message for log in client.read_logs(asked)]
    return client.read_flow_run(made.id), lines


HOSTILE = [
    ("train", parameters(id="os:CartPole-v1"), "module 'os'"),
    ("train", parameters(id="CartPole-v1", wrappers=[{"subprocess.Popen": {"args": "id"}}]), "subprocess.Popen"),
    ("train", parameters(id="CartPole-v1", kwargs={"render_mode": {"env": "GUARDED_KEY"}}), "GUARDED_KEY"),
    ("train", {**parameters(id="CartPole-v1"), "run": "../../escape"}, "Run name '../../escape' is not allowed"),
    ("train", {**parameters(id="CartPole-v1"), "run": "x" * 300}, "is not allowed"),
    ("retrain", parameters(id="os:CartPole-v1"), "module 'os'"),
    ("retrain", {**parameters(id="CartPole-v1"), "run": "a/b"}, "Run name 'a/b' is not allowed"),
    ("promote", {"run": "../x", "model": "m"}, "is not allowed"),
    ("trial", {"sweep": "../x", "number": 0}, "is not allowed"),
]  # fmt: skip


@pytest.mark.slow
def test_hostile_parameters_end_a_deployed_run_at_once_and_in_words(client, own_root, monkeypatch):
    pytest.importorskip("optuna")
    from rltrack.flows import promote, retrain, train, trial

    monkeypatch.setenv("GUARDED_KEY", SECRET)
    flows = {"train": train.train, "retrain": retrain.retrain, "promote": promote.promote, "trial": trial.trial}
    for name, given, words in HOSTILE:
        flow_run, lines = deployed(client, flows[name], given)
        assert flow_run.state.name == "Failed", (name, flow_run.state)
        assert words in flow_run.state.message, (name, flow_run.state.message)
        assert flow_run.run_count == 1
        assert SECRET not in flow_run.state.message + "".join(lines)
        assert not Root().runs_folder.exists() or not list(Root().runs_folder.iterdir()), "nothing was begun"
        tasks = [task for task in client.read_task_runs() if task.flow_run_id == flow_run.id]
        assert [task.run_count for task in tasks] == [1] * len(tasks)


@pytest.mark.slow
def test_an_allowed_secret_does_not_reach_prefect(client, own_root, monkeypatch, quick_retries):
    """The environment repeats it in an error, at the first reset; what comes to the server has none of it."""
    from rltrack.flows import train

    monkeypatch.setenv("GUARDED_KEY", SECRET)
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tests.support")
    monkeypatch.setenv("RLTRACK_ALLOWED_VARIABLES", "GUARDED_KEY")
    given = parameters(id="tests.support.guarded:Guarded-v0", kwargs={"api_key": {"env": "GUARDED_KEY"}})
    flow_run, lines = deployed(client, train.train, given)
    told = flow_run.state.message + "\n".join(lines)
    assert flow_run.state.name == "Failed"
    assert f"login with {HIDDEN} at https://me:***@host?token={HIDDEN} refused" in flow_run.state.message
    for secret in (SECRET, "hunter22", "tok123"):
        assert secret not in told
    assert "ConnectionError" in told
    deadline = time.monotonic() + 20
    counts: list[int] = []
    while retries.RETRIES + 1 not in counts and time.monotonic() < deadline:
        counts = [task.run_count for task in client.read_task_runs() if task.flow_run_id == flow_run.id]
        time.sleep(0.3)
    assert retries.RETRIES + 1 in counts, "a connection may come back, whatever its error says"


class Odd(Exception):
    """Takes arguments of its own, and makes its text from an attribute."""

    def __init__(self, one, two):
        self.one, self.two = one, two

    def __str__(self):
        return f"{self.one} and {self.two}"


class Checked(BaseModel):
    """Raises an error whose class cannot be derived from."""

    number: int


def raised(make):
    """What leaves a guarded function."""

    @redacting
    def function():
        make()

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function()
    return caught.value


def throw(error, cause=None):
    def make():
        raise error from cause

    return make


def throw_behind():
    try:
        raise KeyError(SECRET)
    except KeyError:
        raise RuntimeError("harmless")  # noqa: B904  (it hangs behind as the context)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (throw(ValueError(f"got {SECRET}")), ValueError),
        (throw(ConfigurationError(f"got {SECRET}")), ConfigurationError),
        (throw(CheckpointFailed(f"got {SECRET}")), CheckpointFailed),
        (throw(RunBusy(f"got {SECRET}")), RunBusy),
        (throw(RegistryUnavailable("harmless"), OSError(SECRET)), RegistryUnavailable),
        (throw(FileNotFoundError(errno.ENOENT, "No such file", f"/x/{SECRET}")), FileNotFoundError),
        (throw(OSError(errno.ENAMETOOLONG, "File name too long", SECRET)), OSError),
        (throw(KeyError(SECRET)), KeyError),
        (throw(UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad")), UnicodeDecodeError),
        (throw(Odd("x", SECRET)), Odd),
        (throw(ExceptionGroup("several", [ValueError(SECRET)])), Exception),
        (throw_behind, RuntimeError),
        (lambda: Checked(number=SECRET), ValueError),
        (throw(ValueError("redis://:pw123456@host/0 refused")), ValueError),
        (throw(ValueError({"password": "pw123456"})), ValueError),
    ],
)
def test_what_leaves_a_task_has_no_secret(taken, make, kind):
    with pytest.raises(BaseException) as before:  # noqa: PT011
        make()
    error = raised(make)
    assert isinstance(error, kind)
    assert retries.is_transient(error) == retries.is_transient(before.value)
    trace = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error), repr(error.args), trace):
        assert SECRET not in text
        assert "pw123456" not in text
    assert error.__cause__ is None
    assert error.__context__ is None


def test_an_error_without_a_secret_is_left_as_it_is(taken):
    cause = OSError("disk")
    error = raised(throw(CheckpointFailed("no space"), cause))
    assert error.__cause__ is cause
    assert without_secrets_in(error) is error
    assert isinstance(raised(throw(KeyboardInterrupt())), KeyboardInterrupt)
    with pytest.raises(ValidationError):
        Checked(number="x")


def test_the_form_of_a_flow_stays(taken):
    import inspect

    from prefect.states import Completed

    from rltrack.config import TrainingConfig
    from rltrack.flows import train

    names = inspect.signature(train.train.fn).parameters
    assert list(names) == ["config", "run", "restarts"]
    assert names["config"].annotation is TrainingConfig
    assert train.train.fn.__doc__.startswith("Train what a configuration describes")
    assert HIDDEN in redacting(lambda: Completed(message=f"ended with {SECRET}"))().message


@pytest.mark.filterwarnings("ignore:Logger 'prefect")
def test_lines_that_flows_log_have_no_secret(taken, caplog):
    keep_secrets_out_of_logs()
    keep_secrets_out_of_logs()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        assert sum(type(known).__name__ == "_WithoutSecrets" for known in logger.filters) == 1
        before, logger.propagate = logger.propagate, True
        try:
            with caplog.at_level(logging.INFO, name):
                logger.info("the key is %s", SECRET)
                try:
                    raise ValueError(SECRET)
                except ValueError:
                    logger.exception("failed")
                logger.info("harmless %d", 3)
        finally:
            logger.propagate = before
    assert SECRET not in caplog.text
    assert f"the key is {HIDDEN}" in caplog.text
    assert f"ValueError: {HIDDEN}" in caplog.text
    assert "harmless 3" in caplog.text


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR])
def test_a_path_that_cannot_be_is_not_tried_again(number):
    assert not retries.is_transient(OSError(number, "x"))
    assert retries.is_transient(OSError(errno.EIO, "x"))
    assert retries.is_transient(OSError("x"))
