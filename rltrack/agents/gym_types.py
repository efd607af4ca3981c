"""Gymnasium's classes, for environments with any observations and actions."""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium as gym

Env: TypeAlias = gym.Env[Any, Any]
Wrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]
Space: TypeAlias = gym.Space[Any]
