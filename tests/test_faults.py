"""What breaks under a training fails its cell with a reason and a remedy, and loses nothing: the next run goes on from there."""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from benchmarks import data, spec
from benchmarks.run import schedule, workers
from benchmarks.run.train import StoppedError
from benchmarks.store import Store


class Images(Dataset[Any]):
    """Sixty-four 8x8 images, loaded one by one; a loading process is killed once, at the file ``bomb``."""

    def __init__(self, bomb: Path) -> None:
        self.bomb = bomb
        self.images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.bomb.exists() and get_worker_info():
            self.bomb.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index], index % 10


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Store:
    monkeypatch.chdir(tmp_path)
    images = Images(tmp_path / "bomb")
    made = data.Data("digits", images, images, images, 10, 1, 8, False, "d" * 64, "invented")
    monkeypatch.setattr(data, "load", lambda *_, **__: made)
    return Store("digits", f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")


@pytest.fixture
def jobs() -> list[schedule.Job]:
    """Two ReLU networks, two epochs of four updates each."""
    cell = spec.resolve(spec.load_spec("table3").row[0], spec.load_profile("digits"))
    recipe = cell.recipe.model_copy(update={"epochs": 2, "batch_size": 16, "augment": False})
    small = {
        "recipe": recipe,
        "neuron": spec.NeuronSpec(kind="relu"),
        "network": {"width": 1 / 64},
        "float64_checks": False,
    }
    cell = cell.model_copy(update=small)
    other = cell.model_copy(update={"recipe": recipe.model_copy(update={"momentum": 0.5})})
    return [schedule.Job("table3", one, 42) for one in (cell, other)]


def run(jobs: list[schedule.Job], store: Store, folder: Path, **options: Any) -> dict[str, str]:
    options = {"state_dir": str(folder / "state"), "root": folder} | options
    return schedule.run(jobs, store, parallel=1, device="cpu", progress=lambda job, event: None, **options)


def weights(jobs: list[schedule.Job], folder: Path) -> dict[str, str]:
    """SHA-256 of the checkpoints that undisturbed trainings end with, by cell. (A checkpoint's bytes hold its file's name.)"""
    found = {}
    for job in jobs:
        list(workers.run_cell(job.cell, job.seed, root=folder, device="cpu", out=folder / "checkpoint.pt"))
        found[job.cell.hash] = hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest()
    return found


def stored(store: Store) -> dict[str, str]:
    frame = store.seeds()
    return dict(zip(frame["cell"], frame["tag.checkpoint_sha256"], strict=True))


def test_a_killed_loader_process_fails_its_cell_alone_and_the_next_run_makes_up_for_it(
    store: Store, jobs: list[schedule.Job], tmp_path: Path
) -> None:
    expected = weights(jobs, tmp_path)
    (tmp_path / "bomb").touch()
    failed = run(jobs, store, tmp_path, data_workers=2)
    assert list(failed) == [jobs[0].cell.hash]
    assert "DataLoader worker" in failed[jobs[0].cell.hash]
    assert "lower --data-workers" in failed[jobs[0].cell.hash]
    assert "lower --data-workers" in store.failures()[jobs[0].key]
    assert stored(store) == {jobs[1].cell.hash: expected[jobs[1].cell.hash]}
    assert run(jobs, store, tmp_path, data_workers=2) == {}
    assert stored(store) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False, capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_fails_the_cell_and_leaves_its_last_state(
    store: Store, jobs: list[schedule.Job], small_disk: Path, tmp_path: Path
) -> None:
    expected = weights(jobs[:1], tmp_path)
    first = jobs[0]
    run_id, _ = store.open_seed("table3", first.cell, 42, "cpu")
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        list(
            workers.run_cell(
                first.cell,
                42,
                root=tmp_path,
                device="cpu",
                out=tmp_path / "c.pt",
                state_dir=str(small_disk),
                run_id=run_id,
                stopping=lambda: next(answers),
            )
        )
    store.pause(run_id)
    (before,) = small_disk.glob("*/state-*")
    content = before.read_bytes()
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize))
    failed = run([first], store, tmp_path, state_dir=str(small_disk))
    assert "No space left on device" in failed[first.cell.hash]
    assert "free some space; the same command goes on from the last state" in failed[first.cell.hash]
    assert before.read_bytes() == content
    filler.unlink()
    assert run([first], store, tmp_path, state_dir=str(small_disk)) == {}
    assert stored(store) == expected
    assert len(store._search("tags.kind = 'seed'")) == 1  # the same run all along


def test_out_of_memory_comes_with_advice(jobs: list[schedule.Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_cell(*_: Any, **__: Any) -> Iterator[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB [GPU 0]")
        yield

    monkeypatch.setattr(workers, "run_cell", run_cell)
    (event,) = workers._events(jobs[0].cell, 42)
    assert str(event).startswith(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB [GPU 0]; lower the recipe's"
    )
