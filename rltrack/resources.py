"""What training uses of the machine: memory, CPU, GPU. Absent without error where there is no GPU."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

_CHILDREN_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Resources:
    """One look at the machine. Memory in MB of 1e6 bytes; CPU in percent of one core.

    Attributes:
        memory_mb: Resident memory of this process and its environment workers.
        cpu_percent: CPU use of the same processes since the last look.
        system_memory_mb: Memory in use on the machine.
        system_memory_percent: The same, of all its memory.
        system_cpu_percent: CPU use of the whole machine, 100 for all cores busy.
        gpus: One entry per GPU: ``utilization_percentage``, ``memory_usage_megabytes``, ….
        process_gpu_mb: GPU memory of this process and its environment workers; None without a GPU that reports it.
    """

    memory_mb: float
    cpu_percent: float
    system_memory_mb: float
    system_memory_percent: float
    system_cpu_percent: float
    gpus: tuple[dict[str, float], ...] = ()
    process_gpu_mb: float | None = None

    def to_metrics(self) -> dict[str, float]:
        """Return the values under the keys that MLflow's page shows as system metrics."""
        metrics = {
            "system/process_memory_megabytes": self.memory_mb,
            "system/process_cpu_percentage": self.cpu_percent,
            "system/system_memory_usage_megabytes": self.system_memory_mb,
            "system/system_memory_usage_percentage": self.system_memory_percent,
            "system/cpu_utilization_percentage": self.system_cpu_percent,
        }
        for index, gpu in enumerate(self.gpus):
            metrics.update({f"system/gpu_{index}_{key}": value for key, value in gpu.items()})
        if self.process_gpu_mb is not None:
            metrics["system/process_gpu_memory_megabytes"] = self.process_gpu_mb
        return metrics

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


class ResourceSampler:
    """Looks at a process tree and the machine.

    Args:
        pid: The process; omitted: this one. The process that delivers its numbers does not count as part of it.

    Raises:
        psutil.NoSuchProcess: If there is no such process.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._process = psutil.Process(pid or os.getpid())
        self._workers: list[psutil.Process] = []
        self._workers_at = float("-inf")
        age = time.time() - self._process.create_time()
        self._cpu = (time.monotonic() - age, 0.0)

    def memory_mb(self) -> float:
        """Return the resident memory of the process and its workers, in MB."""
        total = 0
        for process in [self._process, *self._children()]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 1e6

    def sample(self) -> Resources:
        """Look once; takes about a millisecond."""
        before, used = self._cpu
        now, using = time.monotonic(), self._cpu_seconds()
        self._cpu = (now, using)
        memory = psutil.virtual_memory()
        return Resources(
            memory_mb=self.memory_mb(),
            cpu_percent=100.0 * max(using - used, 0.0) / max(now - before, 1e-3),
            system_memory_mb=(memory.total - memory.available) / 1e6,
            system_memory_percent=memory.percent,
            system_cpu_percent=psutil.cpu_percent(None),
            gpus=_gpus(),
            process_gpu_mb=_gpu_memory_mb({process.pid for process in [self._process, *self._children()]}),
        )

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in [self._process, *self._children()]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _children(self) -> list[psutil.Process]:
        """The worker processes; listing them reads all of /proc, so it is done seldom."""
        now = time.monotonic()
        if now - self._workers_at > _CHILDREN_EVERY_SECONDS:
            self._workers_at = now
            with contextlib.suppress(psutil.Error):
                found = self._process.children(recursive=True)
                self._workers = [process for process in found if not _delivers(process)]
        return self._workers


_delivering: set[int] = set()


def not_of_training(session: int) -> None:
    """Leave a process and its children out of what training uses: they deliver its numbers.

    Args:
        session: Process id of the leader of their session.
    """
    _delivering.add(session)


def _delivers(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) in _delivering
    except OSError:
        return False


_nvml: Any = None


def _gpus() -> tuple[dict[str, float], ...]:
    """Ask NVML; an empty tuple where there is no GPU or no driver."""
    found = []
    for nvml, handle in _gpu_handles():
        with contextlib.suppress(nvml.NVMLError):  # a GPU that fell off the bus
            found.append(_gpu(nvml, handle))
    return tuple(found)


def gpu_names() -> list[str]:
    """Return the models of the machine's GPUs."""
    return [str(nvml.nvmlDeviceGetName(handle)) for nvml, handle in _gpu_handles()]


def _gpu_memory_mb(pids: set[int]) -> float | None:
    """GPU memory in MB that these processes hold, over all GPUs; None without one that reports it."""
    total = None
    for nvml, handle in _gpu_handles():
        with contextlib.suppress(nvml.NVMLError):
            held = [
                process.usedGpuMemory or 0
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                if process.pid in pids
            ]
            total = (total or 0.0) + sum(held) / 1e6
    return total


def _gpu_handles() -> list[tuple[Any, Any]]:
    global _nvml
    if _nvml is False:
        return []
    try:
        if _nvml is None:
            import pynvml

            pynvml.nvmlInit()
            _nvml = pynvml
        return [(_nvml, _nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(_nvml.nvmlDeviceGetCount())]
    except Exception:  # NVML raises its own kinds for a missing driver, a lost GPU, a lack of permission
        _nvml = False
        return []


def _gpu(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    found = {
        "memory_usage_megabytes": memory.used / 1e6,
        "memory_usage_percentage": 100.0 * memory.used / memory.total,
    }
    with contextlib.suppress(nvml.NVMLError):  # not every GPU reports each of them
        found["utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(nvml.NVMLError):
        found["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    return found
