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
        gpu_allocated_mb: What torch's allocator holds; None without CUDA in use.
    """

    memory_mb: float
    cpu_percent: float
    system_memory_mb: float
    system_memory_percent: float
    system_cpu_percent: float
    gpus: tuple[dict[str, float], ...] = ()
    gpu_allocated_mb: float | None = None

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
        if self.gpu_allocated_mb is not None:
            metrics["system/gpu_torch_reserved_megabytes"] = self.gpu_allocated_mb
        return metrics

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


class ResourceSampler:
    """Looks at a process tree and the machine."""

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
            gpu_allocated_mb=_allocator_memory_mb(),
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
                self._workers = self._process.children(recursive=True)
        return self._workers


def _allocator_memory_mb() -> float | None:
    from rltrack.agents.devices import allocator_memory_mb

    return allocator_memory_mb()


_nvml: Any = None


def _gpus() -> tuple[dict[str, float], ...]:
    """Ask NVML; an empty tuple where there is no GPU or no driver."""
    global _nvml
    if _nvml is False:
        return ()
    try:
        if _nvml is None:
            import pynvml

            pynvml.nvmlInit()
            _nvml = pynvml
        return tuple(_gpu(_nvml, index) for index in range(_nvml.nvmlDeviceGetCount()))
    except Exception:  # NVML raises its own kinds for a missing driver, a lost GPU, a lack of permission
        _nvml = False
        return ()


def _gpu(nvml: Any, index: int) -> dict[str, float]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    found = {
        "memory_usage_megabytes": memory.used / 1e6,
        "memory_usage_percentage": 100.0 * memory.used / memory.total,
    }
    with contextlib.suppress(nvml.NVMLError):  # not every GPU tells each of them
        found["utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(nvml.NVMLError):
        found["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    return found
