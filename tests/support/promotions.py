"""Many promotions at once: ``python -m tests.support.promotions FOLDER [PROMOTIONS PROCESSES]``."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.registry.registered import CHAMPION
from rltrack.runs import Root
from tests.support.models import add_skill, run_of_skill

MODEL = "busy"


def work(root: Root, versions: list[str]) -> None:
    for version in versions:
        decision = promote(root.find("many"), MODEL, version=version, gate=Gate(episodes=30))
        print(os.getpid(), version, decision.promoted, decision.against, flush=True)


class Reader:
    """Looks who is champion, as often as it can."""

    def __init__(self, root: Root):
        self.seen: list[int | None] = []
        self.reads = 0
        self._registry = ModelRegistry(root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            champion = self._registry.aliases(MODEL).get(CHAMPION)
            self.reads += 1
            if not self.seen or self.seen[-1] != champion:
                self.seen.append(champion)
            time.sleep(0.005)

    def stop(self) -> list[int | None]:
        self._stop.set()
        self._thread.join()
        return self.seen


def many_at_once(folder: Path, promotions: int, processes: int, python: str = sys.executable) -> tuple[int, int]:
    """Returns how many were promoted, and how often somebody looked."""
    root = Root(folder)
    run = run_of_skill(root.path, "many", 0.0)
    skills = [0.1 + 0.7 * (index + 7 * index % 20) / (promotions + 20) for index in range(promotions)]  # mostly rising
    versions = [add_skill(run, skill) for skill in skills]
    ModelRegistry(root)  # makes the database
    reader = Reader(root)
    environment = {**os.environ, "RLTRACK_ROOT": str(root.path), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [python, "-m", "tests.support.promotions", "--work", *versions[index::processes]], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip
    outcomes = [worker.communicate(timeout=1500) for worker in workers]
    seen = reader.stop()
    assert all(worker.returncode == 0 for worker in workers), [error[-2000:] for _, error in outcomes if error]
    registry = ModelRegistry(root)
    events = registry.history(MODEL)
    assert [event.number for event in events] == list(range(1, promotions + 1)), "a history without gaps"
    assert [item.version for item in registry.versions(MODEL)] == list(range(1, promotions + 1))
    champion = None
    for event in events:
        if event.kind == "promoted":
            champion = event.version
        assert event.champion == champion, "each was decided against what was then champion"
    assert champion == registry.aliases(MODEL)[CHAMPION]
    champions = [event.version for event in events if event.kind == "promoted"]
    # a reader may miss one that was champion for an instant, and sees no other, none twice, and never nobody again
    looked = [number for number in seen if number is not None]
    assert None not in seen[1:]
    assert looked == [number for number in champions if number in looked]
    by_version = {
        item.version: skills[versions.index(item.tags["rltrack.version"])] for item in registry.versions(MODEL)
    }
    assert max(by_version.values()) - by_version[champion] < 0.02, "the best is champion in the end"
    return len(champions), reader.reads


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Root(), sys.argv[2:])
    else:
        numbers = [int(word) for word in sys.argv[2:]] or [100, 8]
        begun = time.monotonic()
        promoted, reads = many_at_once(Path(sys.argv[1]), *numbers)
        print(
            f"{promoted} of {numbers[0]} were promoted in {time.monotonic() - begun:.0f} s; {reads} looks, one champion each"
        )
