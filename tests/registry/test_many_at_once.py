"""Promotions of the same model from several processes."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from tests.support.promotions import many_at_once


@pytest.mark.slow
def test_one_waits_and_both_are_decided_against_what_is_then_champion(own_root, forks):
    promoted, _ = many_at_once(own_root, 6, 2, forks.python)
    assert 2 <= promoted < 6


@pytest.mark.nightly
def test_a_hundred_promotions_from_eight_processes(own_root):
    many_at_once(own_root, 100, 8)
