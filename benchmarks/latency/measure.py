"""How things are timed and weighed: interleaved rounds, wall time on a CPU and events on a GPU, peak memory, where time goes."""

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

Contenders = dict[str, Callable[[], object]]
FEWEST, MOST = 5, 50  # rounds
SHORT = (
    0.005  # seconds; a shorter call follows an untimed one of its own, so that no contender finds the caches of another
)
LEAD = 2_000_000  # clock cycles a GPU spins before the first event, so that launches are queued, not waited for


@dataclass
class Measured:
    """What was found for each contender that ran, by its name.

    Attributes:
        seconds: one time a round; the rounds of all contenders belong together.
        faults: minor page faults of the last round's call: memory that the allocator had given back and has to clear again.
        peak: bytes allocated at most, above what was allocated before the call.
        failed: why a contender was not measured.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def percentile(self, name: str, q: float) -> float:
        return float(np.percentile(self.seconds[name], q))

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of ``name``'s time by ``other``'s."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def clock(call: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, what it returns freed again."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(LEAD)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes that torch has allocated at most during a call, above those before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum([0, *changes]).max())


def interleaved(contenders: Contenders, device: str, seconds: float) -> Measured:
    """Time all contenders in turn, round by round, the first one rotating, for about so many seconds.

    A contender that runs out of memory, or can't run here, is left out and the reason kept.
    """
    found, short = Measured(), {}
    for name, call in contenders.items():
        try:
            call()
            found.peak[name] = peak_bytes(call, device)
            once = clock(call, device)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            found.failed[name] = "out of memory" if "out of memory" in str(error) else str(error).split("\n")[0]
            continue
        short[name] = once < SHORT
        found.seconds[name] = [once]
    total = sum(times[0] * (2 if short[name] else 1) for name, times in found.seconds.items())
    rounds = int(min(MOST, max(FEWEST, seconds / total))) if total else 0
    names = list(found.seconds)
    found.seconds = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if short[name]:
                contenders[name]()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            found.seconds[name].append(clock(contenders[name], device))
            found.faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return found


def shares(call: Callable[[], object], device: str, groups: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Milliseconds that a call spends in each group of operators.

    An operator belongs to the first group that has a word of its name, or else of its caller's name, and so on; else to "other".
    """
    calls = 3
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            call()
    spent = dict.fromkeys([*groups, "other"], 0.0)
    for event in profile.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel; its time is that of the operator that launched it, too
        own = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
        holder, group = event, None
        while holder is not None and group is None:
            group = next((g for g, words in groups.items() if any(word in holder.name for word in words)), None)
            holder = holder.cpu_parent
        spent[group or "other"] += own / 1000 / calls
    return spent
