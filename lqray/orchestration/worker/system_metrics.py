"""How busy a worker's machine is, under MLflow's names, so that its UI shows them as system metrics.

MLflow's own monitor would write each point by itself, from a thread beside training; these travel with the trial's
metrics.
"""

from __future__ import annotations

import os
from typing import Any

import psutil

EVERY_SECONDS = 10.0
_MEGA = 1e6


class SystemMetrics:
    """Of the whole machine; CPU use and network traffic since the last sample and since this was made."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # it measures from one call to the next
        try:
            self._traffic = psutil.net_io_counters()
        except (OSError, RuntimeError):
            self._traffic = None
        self._nvml, self._gpus = _gpus()

    def sample(self) -> dict[str, float]:
        """`system/...`, as of now. A GPU that does not answer is left out."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGA,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGA,
            "disk_available_megabytes": disk.free / _MEGA,
        }
        if self._traffic:
            traffic = psutil.net_io_counters()
            found["network_receive_megabytes"] = (traffic.bytes_recv - self._traffic.bytes_recv) / _MEGA
            found["network_transmit_megabytes"] = (traffic.bytes_sent - self._traffic.bytes_sent) / _MEGA
        for number, handle in enumerate(self._gpus):
            found |= {f"gpu_{number}_{key}": value for key, value in self._of_gpu(handle).items()}
        return {f"system/{key}": round(value, 3) for key, value in found.items()}

    def _of_gpu(self, handle: Any) -> dict[str, float]:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return {
                "memory_usage_percentage": 100 * memory.used / memory.total,
                "memory_usage_megabytes": memory.used / _MEGA,
                "utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                "power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            }
        except nvml.NVMLError:
            return {}


def _gpus() -> tuple[Any, list[Any]]:
    """NVML and its handles; no handles without its package or without a GPU."""
    try:
        import pynvml
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return pynvml, []
