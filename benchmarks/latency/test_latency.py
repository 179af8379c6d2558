"""One benchmark for each contender of a case; the samples were taken interleaved and are handed to pytest-benchmark one by one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.latency.cases import Case, spikingjelly
from benchmarks.latency.measure import Measured

ticks: Iterator[float] = iter(())


def recorded() -> float:
    """pytest-benchmark's timer: 0 and a sample, in turn."""
    return next(ticks)


@pytest.mark.benchmark(timer=recorded, disable_gc=False, warmup=False)
def test_latency(case: Case, contender: str, measured: Callable[[Case], Measured], benchmark: Any) -> None:
    global ticks
    if "spikingjelly" in contender and not spikingjelly():
        pytest.skip("spikingjelly is not installed")
    found = measured(case)
    if contender in found.failed:
        reason = found.failed[contender]
        pytest.fail(reason) if reason.startswith("check failed") else pytest.skip(reason)
    samples = found.seconds[contender]
    benchmark.group = str(case)
    benchmark.extra_info = case.describe | {
        "case": str(case),
        "contender": contender,
        "p50": found.percentile(contender, 50),
        "p95": found.percentile(contender, 95),
        "peak_bytes": found.peak[contender],
        "faults": found.faults[contender],
        "ratios": {other: found.ratio(contender, other) for other in found.seconds},
    }
    ticks = iter([tick for sample in samples for tick in (0.0, sample)])
    benchmark.pedantic(lambda: None, rounds=len(samples))
