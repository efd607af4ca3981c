"""Evaluations under way: played in this process when their result is requested, or in a separate process during training.

The separate process gets the configuration once and a policy for each evaluation, all as plain data on its standard input,
and writes one JSON line for each. Its results are bit-identical to those of this process.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from rltrack.agents.protocol import State
from rltrack.checkpoints import encoding
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import EvaluationUnavailable
from rltrack.evaluation.episodes import Evaluation, EvaluationInterrupted, Evaluator, OnProgress
from rltrack.processes import python_command

_POLL_SECONDS = 0.05
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class EvaluationHere:
    """Plays between two iterations, when the result is requested.

    Attributes:
        evaluator: Plays the episodes.
        env_steps: Env steps of training, for the record.
        policy: None: the agent still has it.
    """

    evaluator: Evaluator
    env_steps: int
    policy: State | None = None

    def result(self, should_abort: Callable[[], bool], on_progress: OnProgress | None = None) -> Evaluation:
        """Play the episodes.

        Raises:
            EvaluationInterrupted: If `should_abort` returned True.
        """
        return self.evaluator.evaluate(self.env_steps, should_abort, on_progress)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which it can be started again."""
        return {"env_steps": self.env_steps, "policy": None}


class EvaluationBeside:
    """Plays in a separate process in parallel with training, from its creation on.

    Attributes:
        env_steps: Env steps of training at which the policy was frozen.
        policy: The policy that plays, as parts of a state.
    """

    def __init__(self, player: Player, env_steps: int, policy: State) -> None:
        self.env_steps, self.policy = env_steps, policy
        self._player = player
        player.submit(env_steps, policy)

    def result(self, should_abort: Callable[[], bool], on_progress: OnProgress | None = None) -> Evaluation:
        """Wait for the result; if the process died, retry in a new one.

        Raises:
            EvaluationInterrupted: If `should_abort` returned True; the evaluation continues, and `result` can be called again.
            EvaluationUnavailable: If the process died repeatedly.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._player.receive(should_abort)
            except EOFError:
                self._player.submit(self.env_steps, self.policy)
        raise EvaluationUnavailable(
            f"The evaluation process died {_ATTEMPTS} times without a result; its messages are above. Set "
            "evaluation.beside_training to false to evaluate between iterations."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which it is started again after a resume."""
        return {"env_steps": self.env_steps, "policy": self.policy}


PendingEvaluation = EvaluationHere | EvaluationBeside


class Player:
    """The separate evaluation process. It ends with this one.

    Args:
        config: Of the run; agent and environments are built from it.
        seeds: One per episode, as in `Evaluator`.
    """

    def __init__(self, config: Mapping[str, Any], seeds: list[int]) -> None:
        self._hello = orjson.dumps({"config": config, "seeds": seeds})
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def submit(self, env_steps: int, policy: State) -> None:
        """Start an evaluation; one at a time."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        encoded = encoding.encode(policy)
        with contextlib.suppress(BrokenPipeError):  # `receive` notices a dead process
            _send(self._process.stdin, orjson.dumps({"env_steps": env_steps}), encoded.skeleton, encoded.tensors)

    def receive(self, should_abort: Callable[[], bool]) -> Evaluation:
        """Wait for the result.

        Raises:
            EvaluationInterrupted: If `should_abort` returned True.
            EOFError: If the process ended.
        """
        process = self._process
        assert process is not None
        assert process.stdout is not None
        while b"\n" not in self._buffer:
            if select.select([process.stdout], [], [], _POLL_SECONDS)[0]:
                received = os.read(process.stdout.fileno(), 1 << 16)
                if not received:
                    process.wait()
                    raise EOFError
                self._buffer += received
            elif should_abort():
                raise EvaluationInterrupted
        line, _, self._buffer = self._buffer.partition(b"\n")
        return Evaluation.from_record(orjson.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self.close()
        self._buffer = b""
        self._process = subprocess.Popen(
            python_command("rltrack.evaluation.pending"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _send(self._process.stdin, self._hello)


def _send(stream: Any, *messages: bytes) -> None:
    for message in messages:
        stream.write(struct.pack("<Q", len(message)) + message)
    stream.flush()


def _receive(stream: BinaryIO) -> bytes:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError
    return stream.read(struct.unpack("<Q", header)[0])


def main() -> None:
    """Play the requested evaluations until standard input ends."""
    from rltrack.agents import build_for_acting

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what an environment prints must not mix with the results
    hello = orjson.loads(_receive(sys.stdin.buffer))
    config = TrainingConfig.model_validate(hello["config"])
    agent, env = build_for_acting(config)
    evaluation_env = agent.make_evaluation_env(None, config.evaluation.parallel)
    player = Evaluator(agent, evaluation_env, hello["seeds"], config.evaluation.deterministic, config.evaluation.limits)
    parent = os.getppid()
    with contextlib.suppress(EOFError):
        while True:
            task = orjson.loads(_receive(sys.stdin.buffer))
            policy = encoding.decode(_receive(sys.stdin.buffer), _receive(sys.stdin.buffer))
            agent.restore(policy)
            begun = time.perf_counter()
            evaluation = player.evaluate(task["env_steps"], lambda: os.getppid() != parent)
            record = {"step": task["env_steps"], **evaluation.to_record(), "seconds": time.perf_counter() - begun}
            answers.write(orjson.dumps(record) + b"\n")
    close_all(evaluation_env, env)


if __name__ == "__main__":
    with contextlib.suppress(EvaluationInterrupted):
        main()
