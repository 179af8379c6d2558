"""Runs the latency tests in a process of their own and logs what they found."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.spec import SpecError
from benchmarks.store import Store

HERE = Path(__file__).parent
RECORD = "benchmark.json"


def run(store: Store, device: str, quick: bool) -> int:
    """Measure on a device, log one run, and return pytest's exit code: not 0 if a check is red, whose figures are then missing.

    Raises:
        SpecError: nothing was measured at all.
        StoreError: the run can't be logged.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / RECORD
        command = [sys.executable, "-m", "pytest", str(HERE), "-q", "--device", device, f"--benchmark-json={file}"]
        options = ["-p", "no:cacheprovider", "--benchmark-columns=median,min,max,rounds", "--benchmark-sort=name"]
        # below an xdist worker pytest-benchmark would switch itself off
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
        command += [*options, *["--quick"] * quick]
        code = subprocess.run(command, cwd=HERE.parents[1], env=environment, check=False).returncode
        if not file.exists() or not file.stat().st_size:
            raise SpecError(f"nothing was measured: pytest ended with exit code {code}; its output says why")
        log(store, file)
    return code


def log(store: Store, file: Path) -> None:
    """Put pytest-benchmark's file (`benchmark.json`), from whatever machine it comes, into the store.

    Raises:
        StoreError: the run can't be logged.
    """
    record = json.loads(file.read_text())
    store.log_latency(record["latency"]["device"], params(record), metrics(record), file)


def params(record: dict[str, Any]) -> dict[str, Any]:
    """What was measured with."""
    info, machine = record["latency"], record["machine_info"]
    known = ("device", "device_name", "vectors", "threads", "torch", "quick", "spikingjelly")
    return {key: info[key] for key in known} | {
        "machine": f"{machine['machine']}, {machine['cpu']['brand_raw']}, {machine['cpu']['count']} logical CPUs",
        "python": machine["python_version"],
        "measured": record["datetime"][:10],
        "commit": record["commit_info"]["id"],
        "dirty": record["commit_info"]["dirty"],
    }


def metrics(record: dict[str, Any]) -> dict[str, float]:
    """``<case>/<contender>/p50_ms``, ``p95_ms``, ``peak_mb``; characters that MLflow does not take are replaced."""
    found: dict[str, float] = {}
    for benchmark in record["benchmarks"]:
        one = benchmark["extra_info"]
        name = f"{one['case']}/{one['contender']}".replace("+", "_and_")
        found |= {f"{name}/p50_ms": one["p50"] * 1e3, f"{name}/p95_ms": one["p95"] * 1e3}
        found[f"{name}/peak_mb"] = one["peak_bytes"] / 1e6
    return found
