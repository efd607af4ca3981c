"""Algorithms and environments, each killed and resumed in processes of its own: `rltrack benchmark resume` as tests."""

from __future__ import annotations

import pytest

from rltrack.benchmarks.resume import CASES, run_case, run_matrix
from rltrack.errors import ConfigurationError

pytest.importorskip("stable_baselines3")
EVERY_TIME = (  # one for each kind of environment, buffer and tier; each algorithm is in test_exact
    "ppo-multiobs-sub2-global-random",
    "sac-her-bitflip-info",
    "ppo-halfcheetah-norm-2",
    "replay-dqn-lunarlander",
    "cut-sac-bipedal",
    "inexact-ppo-bipedal",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(case.name, marks=pytest.mark.slow if case.name in EVERY_TIME else pytest.mark.nightly)
        for case in CASES
    ],
)
def test_resume_is_as_the_matrix_says(name, request):
    if name in EVERY_TIME:  # the nightly ones are in processes of their own, as in the benchmark
        request.getfixturevalue("forked")
    row = run_case(name)
    if row.exact is None and row.expected:
        pytest.skip(row.note)
    assert row.expected, row


def test_a_case_that_is_unknown_is_an_error():
    with pytest.raises(ConfigurationError, match=r"No case 'ppo-cartpol'. Did you mean 'ppo-cartpole'"):
        run_matrix(["ppo-cartpol"])
