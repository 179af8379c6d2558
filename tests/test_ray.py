"""Trainings on a Ray cluster of several machines (processes of this one): one that dies takes nothing along."""

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import spec
from benchmarks.record import Epoch, Result
from benchmarks.run import schedule, workers
from benchmarks.run.state import States, Stop
from benchmarks.store import Store

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
in_the_soak = pytest.mark.skipif("LMHT_SOAK" not in os.environ, reason="minutes long: tox run -e soak")
EPOCHS = 40  # some seconds: the machine dies in the first one


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A head without cores."""
    one = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield one
    one.shutdown()


@pytest.fixture(scope="module")
def cell() -> spec.Cell:
    whole = spec.resolve(spec.load_spec("table3").row[0], spec.load_profile("digits"))
    recipe = whole.recipe.model_copy(update={"epochs": EPOCHS, "epoch_images": 64, "batch_size": 16})
    small = {"recipe": recipe, "network": {"width": 1 / 64}, "neuron": spec.NeuronSpec(kind="relu")}
    return whole.model_copy(update=small | {"float64_checks": False})


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store("digits", f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")


@in_the_soak
def test_trainings_of_a_machine_that_dies_go_on_elsewhere_from_their_states(
    cluster: Any, cell: spec.Cell, store: Store, tmp_path: Path
) -> None:
    jobs = [schedule.Job("table3", cell, seed) for seed in (42, 43)]
    machines = [cluster.add_node(num_cpus=1)]
    told: dict[int, list[Any]] = {42: [], 43: []}
    states: dict[int, int] = {}

    def progress(job: schedule.Job, event: Any) -> None:
        told[job.seed].append(event)
        if isinstance(event, Epoch) and event.epoch == 2 and len(machines) == 1:
            cluster.remove_node(machines[0], allow_graceful=False)
            machines.append(cluster.add_node(num_cpus=1))
        if isinstance(event, Epoch) and event.epoch == EPOCHS:
            newest = States(str(tmp_path / "state"), cell, job.seed)._names()[-1]
            states[job.seed] = int(newest[-11:-3])

    options = {"device": "cpu", "state_dir": str(tmp_path / "state"), "root": tmp_path, "ray": cluster.address}
    assert schedule.run(jobs, store, parallel=None, progress=progress, **options) == {}
    notes = [event for event in told[42] if isinstance(event, workers.Note)]
    assert [note.partition(" (")[0] for note in notes] == [f"{cell.name}, seed 42: its worker died"]
    for seed in (42, 43):
        events = [event for event in told[seed] if not isinstance(event, workers.Note)]
        assert [e.epoch for e in events[:-1]] == list(range(1, EPOCHS + 1))
        assert isinstance(events[-1], Result)
        assert states[seed] == EPOCHS - 1, "an epoch was trained twice"
    frame = store.seeds().set_index("seed")
    assert sorted(frame.index) == [42, 43]
    for seed, line in frame.iterrows():
        *epochs, result = workers.run_cell(cell, seed, root=tmp_path, device="cpu", out=tmp_path / "checkpoint.pt")
        points = store.client.get_metric_history(line["run_id"], "epoch/loss")
        assert [(p.step, p.value) for p in points] == [(e.epoch, e.metrics["loss"]) for e in epochs]
        assert line["tag.checkpoint_sha256"] == hashlib.sha256(result.checkpoint.read_bytes()).hexdigest()


@in_the_soak
def test_what_no_machine_has_is_refused(cluster: Any, cell: spec.Cell, store: Store, tmp_path: Path) -> None:
    job = schedule.Job("table3", cell.model_copy(update={"threads": 999}), 42)
    options = {"device": "cpu", "state_dir": str(tmp_path / "state"), "root": tmp_path, "ray": cluster.address}
    had = "(1 CPU, )?0 CPU"  # the head, and the other test's machine if that ran before in this process
    with pytest.raises(spec.SpecError, match=f"wants 999 CPU of one machine; those of the Ray cluster have {had}"):
        schedule.run([job], store, parallel=None, progress=lambda *_: None, **options)
    assert [run.info.status for run in store._search("tags.kind = 'seed'")] == ["KILLED"]  # no claim is left


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        (
            "local",
            OSError("path length\ncannot exceed 107"),
            "this machine: path length cannot exceed 107; --jobs 1 goes",
        ),
        ("10.0.0.1:6379", ConnectionError("no answer"), r"answers at 10\.0\.0\.1:6379: no answer; `ray start --head`"),
    ],
)
def test_no_ray_is_one_error(monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, words: str) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(spec.SpecError, match=words):
        workers.OnRay(address, 2, "cpu", Stop())


class GoneError(Exception):
    """What Ray says of a dead worker."""


class Dying:
    """Ray, but for its machines: a worker that gives some events and dies."""

    exceptions = SimpleNamespace(RayError=GoneError)

    def __init__(self, lives: list[list[Any]]) -> None:
        self.lives = lives

    def wait(self, events: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return events[:1], []

    def get(self, event: Any) -> Any:
        if event is None:
            raise GoneError("the worker died\nand more")
        return event, b"weights"

    def begin(self, training: workers.Spread) -> None:
        training.events = iter([*self.lives.pop(0), None])


def spread(lives: list[list[Any]], stop: Stop | None = None) -> tuple[workers.OnRay, workers.Spread]:
    pool = workers.OnRay.__new__(workers.OnRay)
    pool.ray, pool.stop = Dying(lives), stop or Stop()
    pool._begin = pool.ray.begin
    cell = spec.resolve(spec.load_spec("table1").row[0], spec.load_profile("digits"))
    training = workers.Spread(cell, 42, {})
    pool._begin(training)
    return pool, training


def test_a_training_that_gets_no_further_fails_in_the_end_and_tells_no_epoch_twice() -> None:
    epochs = [Epoch(n, 3, {}) for n in (1, 2)]
    pool, training = spread([epochs[:1], epochs, epochs, epochs, epochs, epochs])
    told = []
    while not told or isinstance(told[-1], workers.Note | Epoch):
        told.append(pool.next_event([training])[1])
    assert [event for event in told if isinstance(event, Epoch)] == epochs
    assert sum(isinstance(event, workers.Note) for event in told) == 1 + workers.RETRIES
    assert told[-1] == "its worker died 4 times in one epoch: the worker died"


def test_a_worker_that_dies_while_all_stop_is_not_begun_again() -> None:
    stop = Stop()
    stop.signal = 15
    pool, training = spread([[]], stop)
    pool.flag = type("Flag", (), {"up": type("up", (), {"remote": staticmethod(lambda: None)})})
    assert isinstance(pool.next_event([training])[1], workers.StoppedError)


@pytest.mark.parametrize(("parallel", "gpus", "share"), [(1, 1, 1.0), (3, 1, 0.3333), (3, 2, 0.5), (2, 4, 1.0)])
def test_trainings_share_this_machine_s_gpus(
    cell: spec.Cell, monkeypatch: pytest.MonkeyPatch, parallel: int, gpus: int, share: float
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    pool = workers.OnRay.__new__(workers.OnRay)
    pool.local, pool.parallel, pool.device = True, parallel, "cuda"
    assert pool.wants(cell) == {"CPU": 1, "GPU": share}
    assert pool.room(cell) == parallel
    pool.local = False  # a cluster's machines are not ours to divide
    assert pool.wants(cell)["GPU"] == 1
