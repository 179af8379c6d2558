"""One training on several processes computes what one process does, by whichever launcher; stopped or killed, it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from benchmarks import spec
from benchmarks.run import together, train
from benchmarks.run.state import States
from tests import shared

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes on one core are refused")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What two processes measured, and where."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*TORCHRUN, str(ROOT / "tests" / "shared.py"), str(folder / "found.pt")]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt"), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("one")
    return shared.measured(1, folder), folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@needs_two
def test_two_processes_compute_what_one_does_with_the_whole_batch(two: Any, one: Any) -> None:
    found, expected = two[0]["whole"], one[0]
    assert len(expected["gradients"]) == 4
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-12)
    for ours, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        assert float(theirs.abs().max()) > 1e-2
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-12
    ours, theirs = weights(two[1] / "whole"), weights(one[1])
    assert any(name.endswith("running_var") for name in ours)
    for name, value in theirs.items():  # weights, and the statistics of batch normalisation
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12)


@needs_two
def test_each_image_is_tested_once(two: Any, one: Any) -> None:
    """Of 21 validation and 33 test images: an image looked at twice, or by nobody, would change these shares."""
    assert two[0]["whole"]["accuracies"] == one[0]["accuracies"]
    assert two[0]["whole"]["result"] == pytest.approx(one[0]["result"], rel=1e-12)


@needs_two
def test_a_training_that_one_of_its_processes_stopped_goes_on_bit_for_bit(two: Any) -> None:
    whole, again = two[0]["whole"], two[0]["again"]
    assert len(again["gradients"]) == 1  # three of the four updates were done
    assert torch.equal(again["gradients"][0], whole["gradients"][-1])
    assert again["result"] == whole["result"]
    assert (two[1] / "again" / "checkpoint.pt").read_bytes() == (two[1] / "whole" / "checkpoint.pt").read_bytes()


@needs_two
def test_an_error_in_one_process_is_raised_in_all(two: Any) -> None:
    assert len(two[0]["errors"]) == 2  # of both processes; of the other one alone


def test_a_state_of_another_number_of_processes_is_refused_by_name(two: Any) -> None:
    """Another number makes another cell, whose states lie elsewhere; one that is put there is refused."""
    cells = [shared.cell(devices) for devices in (2, 1)]
    theirs, ours = (States(str(two[1] / "again"), cell, 7) for cell in cells)
    names = theirs._names()
    assert names
    assert ours.load() == (None, [])
    Path(ours.folder).mkdir(parents=True)
    shutil.copy(names[-1], ours.folder)
    usable, (reason,) = ours.load()
    assert usable is None
    assert f"has cell '{cells[0].hash}', this training '{cells[1].hash}'" in reason


@pytest.mark.parametrize(
    ("environment", "devices", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, 2,
         "the profile trains on devices = 2, and torchrun started 3 processes; start 2, or set devices = 3"),
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 1,
         "the profile trains on devices = 1, and torchrun started 2 processes"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}, 2, "and SLURM started 4 processes"),
        ({}, 9999, "devices = 9999 wants 9999 CPU cores of this machine, which has .*; lower devices in the profile, or"),
        ({"SLURM_NTASKS": "9999", "SLURM_NTASKS_PER_NODE": "3333"}, 9999, "wants 3333 CPU cores of this machine"),
    ],
)  # fmt: skip
def test_another_number_of_processes_or_too_many_devices_are_refused(
    environment: dict[str, str], devices: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(spec.SpecError, match=message):
        together.check(devices, "cpu")


def test_a_few_tasks_of_slurm_are_so_many_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    together.check(1, "cpu")
    assert together.fabric(1, "cpu", "32-true").world_size == 1


def test_a_training_for_several_processes_does_not_run_in_one(tmp_path: Path) -> None:
    with pytest.raises(
        train.TrainingError, match="devices = 2 are so many processes, which `python -m benchmarks run`"
    ):
        next(train.run_cell(shared.cell(2), 7, root=tmp_path, device="cpu", out=tmp_path / "c.pt"))


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


@needs_two
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a process's children")
def test_the_command_starts_its_processes_and_all_stop_when_one_is_told_to(
    tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "m.db")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db", "PYTHONPATH": str(ROOT)}
    environment |= {"SMALL_DEVICES": "2", "SMALL_EPOCHS": "1000", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "tests" / "small.py"), "run", "table3", "--rows", "imagenet200-vgg13-relu"]
    words += ["--device", "cpu", "--state-dir", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        while not list(tmp_path.glob("state/*/state-*.pt")) and process.poll() is None:
            time.sleep(0.05)
        (follower,) = children(process.pid)
        os.kill(follower, signal.SIGTERM)  # it alone
        process.wait(300)
    finally:
        process.kill()
    output = (tmp_path / "log").read_text()
    assert process.returncode == 143, output
    assert "the same command goes on from there" in " ".join(output.split())
    for _ in range(300):
        if not alive(follower):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process outlives the command")
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("digits/table3")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'seed'")
    assert run.info.status == "KILLED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "epoch/loss")]
    assert steps == list(range(1, len(steps) + 1))
