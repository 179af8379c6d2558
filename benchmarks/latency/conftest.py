"""Options and fixtures of the latency tests. What could not be timed is listed in the JSON file as left out."""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.latency import cases, measure
from benchmarks.run.network import full_float32

NO_GPU = "not run: no GPU"
LEFT_OUT: pytest.StashKey[dict[str, str]] = pytest.StashKey()
PROFILES: pytest.StashKey[dict[str, dict[str, dict[str, float]]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("latency")
    group.addoption("--device", choices=("cpu", "cuda", "auto"), default="auto", help="default: a GPU if there is one")
    group.addoption("--quick", action="store_true", help="tiny sizes, seconds: for trying the harness, not for figures")


def device(config: pytest.Config) -> str:
    chosen = config.getoption("--device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if chosen == "auto" else chosen


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT], config.stash[PROFILES] = {}, {}
    if device(config) == "cpu":
        if not config.getoption("--quick"):
            torch.set_num_threads(len(os.sched_getaffinity(0)))
    else:
        torch.backends.cudnn.benchmark = True
        full_float32()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Case by case, and within a case contender by contender."""
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    chosen = [(c, name) for c in cases.cases(device(config), config.getoption("--quick")) for name in c.names]
    metafunc.parametrize(("case", "contender"), chosen, ids=[f"{case}-{name}" for case, name in chosen])


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    chosen = device(config)
    output_json["latency"] = {
        "left_out": config.stash[LEFT_OUT],
        "device": chosen,
        "device_name": torch.cuda.get_device_name()
        if chosen == "cuda"
        else output_json["machine_info"]["cpu"]["brand_raw"],
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "quick": config.getoption("--quick"),
        "spikingjelly": cases.spikingjelly() or "not installed",
        "profiles": config.stash[PROFILES],
    }


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[cases.Case], measure.Measured]:
    """Times a case, all its contenders in one go, when the first of them is asked for."""
    if device(pytestconfig) == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)

    @functools.cache
    def run(case: cases.Case) -> measure.Measured:
        refused = case.refused()
        contenders = {name: call for name, call in case.contenders().items() if name not in refused}
        found = measure.interleaved(contenders, case.device, case.seconds)
        found.failed |= {name: f"check failed: {reason}" for name, reason in refused.items()}
        pytestconfig.stash[LEFT_OUT] |= {f"{case}-{name}": reason for name, reason in found.failed.items()}
        if isinstance(case, cases.NetworkCase) and case.profiled:
            wanted: list[str] = [name for name in ("relu", "qcfs", "lmht", "lmht-T4") if name in found.seconds]
            spent = {name: measure.shares(contenders[name], case.device, cases.GROUPS) for name in wanted}
            pytestconfig.stash[PROFILES][str(case)] = spent
        return found

    return run


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
