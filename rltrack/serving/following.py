"""Follows an alias: looks which version it points to, loads it, and serves it when it is ready::

each second: which version does the alias point to?
    the registry does not answer, or the alias is gone    continue with the version that is served
    the same version                                      nothing
    another one: load it, let it act once
        it works                                          the next request gets it
        it cannot be loaded                               continue with the old one, retry with backoff
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.agents.policy_inputs import act, read_inputs
from rltrack.backoff import Backoff
from rltrack.errors import ModelBroken, RltrackError
from rltrack.registry.digest import DIGEST_TAG
from rltrack.registry.loading import load_policy
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.registered import Registered

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """A version that is ready to act.

    Attributes:
        version: Its number.
        source: ``RUN@version``.
        policy: The policy.
        since: When it became what the alias points to, Unix seconds.
    """

    version: int
    source: str
    policy: ExportedPolicy
    since: float


class Follower:
    """Holds the version that is served, and replaces it.

    Args:
        registry: Where the model is registered.
        model: The registered model.
        first: The version to begin with; loaded here.
        alias: What to follow; None to keep the first version.
        notify: Called with each message, from the follower's thread.

    Attributes:
        served: The version that is served; replaced as a whole.
        failures: How many loads failed.
        is_reachable: Whether the registry answered the last time.

    Raises:
        ModelBroken: If the first version cannot be loaded.
    """

    def __init__(
        self, registry: ModelRegistry, model: str, first: Registered, alias: str | None, notify: Callable[[str], None]
    ) -> None:
        self.model, self.failures, self.is_reachable = model, 0, True
        self._registry, self._alias, self._notify = registry, alias, notify
        self._said = ""
        self._broken: int | None = None
        self._backoff = Backoff(1.0, 60.0)
        self._stopped = threading.Event()
        self.served = self._load(first)

    def start(self) -> None:
        """Follow the alias in a thread, until `stop`."""
        if self._alias is not None:
            threading.Thread(target=self._follow, name="rltrack-follower", daemon=True).start()

    def stop(self) -> None:
        """Follow no longer."""
        self._stopped.set()

    def look(self) -> None:
        """Look once which version the alias points to, and serve that."""
        assert self._alias is not None
        try:
            found = self._registry.pointed_to(self.model, self._alias)
        except RltrackError as error:
            self.is_reachable = False
            self._say(f"the registry does not answer; version {self.served.version} is still served. {error}")
            return
        self.is_reachable = True
        if found is None:
            self._say(f"'{self.model}' has no {self._alias} any more; version {self.served.version} is still served")
        elif found.version == self.served.version:
            self._said, self._broken = "", None
        elif found.version != self._broken or self._backoff.is_due():
            self._replace(found)

    def _replace(self, found: Registered) -> None:
        if found.version != self._broken:
            self._backoff.succeeded()
        before = self.served.version
        try:
            self.served = self._load(found)
        except Exception as error:  # whatever a policy's own class raises
            self.failures += 1
            self._broken = found.version
            self._backoff.failed()
            self._say(f"version {found.version} cannot be served; version {before} is still served. {error}")
            return
        self._broken = None
        self._say(f"version {found.version} ({found.source}) is served now; before it was version {before}")

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                self.look()
            except Exception as error:  # following must not end while answers are given
                self._say(f"{type(error).__name__}: {error}")

    def _load(self, found: Registered) -> Served:
        what = f"Version {found.version} of '{self.model}'"
        loaded = load_policy(self._registry.client, found.model_id, what, found.tags.get(DIGEST_TAG))
        try:
            _act_once(loaded.policy)
        except Exception as error:
            raise ModelBroken(f"{what} cannot act: {' '.join(str(error).split())[:300]}") from error
        return Served(found.version, loaded.source, loaded.policy, self._champion_since(found.version))

    def _champion_since(self, version: int) -> float:
        """When the registry's history says so; now if it does not say it yet."""
        events = self._registry.history(self.model)
        is_newest = self._alias is not None and events and events[-1].champion == version
        return events[-1].time if is_newest else time.time()

    def _say(self, text: str) -> None:
        """Pass a message on, unless it is the same as the last one."""
        if text != self._said:
            self._said = text
            self._notify(text)


def _act_once(policy: ExportedPolicy) -> None:
    """The first call of a network takes longer than later ones, and fails if the policy is broken."""
    from rltrack.agents.policy_check import sample  # on demand: it imports torch

    observation = sample(policy.observation_space, 1, np.random.default_rng(0))
    if policy.is_recurrent:
        act(policy, read_inputs(policy, {"observation": observation}))
    else:
        policy.predict(observation)
