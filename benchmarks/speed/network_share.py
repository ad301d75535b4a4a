"""Where a walk's time goes: the share of the network, and a profile of what is left."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.comparison import Comparison, Setting, ratios
from benchmarks.speed.walks import Subject, Walk, digits, images

_NETWORK = "the network"
_BETWEEN = "Python between operators"
_SHOWN = 8


def share(setting: Setting) -> Iterator[Comparison]:
    """Yield the network's part of the instrumented walk's time, of the device's where it is a GPU; print the rest."""
    for subject in (*images(setting), digits(setting)):
        walk = Walk(subject, network=record_function(_NETWORK)(subject.network.__call__))
        walk()
        times = [_times(walk, subject) for _ in range(setting.pairs)]
        scale = 1e-3 / subject.batch  # microseconds a walk to milliseconds an image
        pairs = [(scale * sum(parts.values()), scale * parts[_NETWORK]) for parts in times]
        yield ratios("share", f"ddpm, {subject.name}", "the network within it", pairs, setting, unit="ms/image")
        _print_rest(times[-1], subject)


def _times(walk: Walk, subject: Subject) -> Counter[str]:
    """Return microseconds by operator outside the network, and the network's as one."""
    on_gpu = subject.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled, record_function(_BETWEEN):
        walk()
    found: Counter[str] = Counter()
    for event in profiled.events() or ():
        if event.device_type == DeviceType.CPU:  # which has its kernels' times too
            taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found[_NETWORK if _in_network(event) else event.name] += taken
    return found


def _in_network(event: Any) -> bool:
    while event is not None:
        if event.name == _NETWORK:
            return True
        event = event.cpu_parent
    return False


def _print_rest(times: Counter[str], subject: Subject) -> None:
    total = sum(times.values())
    rest = [(name, taken) for name, taken in times.most_common() if name != _NETWORK][:_SHOWN]
    told = ", ".join(f"{n} {100 * t / total:.2f} %" for n, t in rest)
    print(f"outside the network, {subject.name}: {told}", file=sys.stderr, flush=True)
