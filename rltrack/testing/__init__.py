"""Test suites for users' own implementations: subclass one in a test module.

The classes are collected by pytest because of their subclasses' names and those of their methods; nothing here imports it.
"""

from rltrack.testing.agents import AgentContract
from rltrack.testing.sinks import POINTS, SinkContract, new_report
from rltrack.testing.strategies import StrategyContract

__all__ = ["POINTS", "AgentContract", "SinkContract", "StrategyContract", "new_report"]
