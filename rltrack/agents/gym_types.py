"""Gymnasium's classes, for environments with any observations and actions."""

from __future__ import annotations

from typing import Any, SupportsFloat, TypeAlias

import gymnasium as gym

Env: TypeAlias = gym.Env[Any, Any]
Wrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]
Reset: TypeAlias = tuple[Any, dict[str, Any]]
"""What ``reset`` returns: observation and info."""
Step: TypeAlias = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]
"""What ``step`` returns: observation, reward, terminated, truncated and info."""
Space: TypeAlias = gym.Space[Any]
