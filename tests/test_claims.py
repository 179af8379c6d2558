"""Many processes, one store: each seed is trained by one of them, and goes on elsewhere if that one dies."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from benchmarks import lease, spec, store
from benchmarks.record import Epoch, Result
from benchmarks.run import schedule, workers
from benchmarks.store import ClaimedError, Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> str:
    monkeypatch.chdir(tmp_path)  # artifacts land in ./mlruns
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}"


def cells() -> list[spec.Cell]:
    profile = spec.load_profile("digits")
    return [spec.resolve(row, profile) for row in spec.load_spec("table1").row[:2]]


def runs(uri: str, kind: str = "seed") -> list[Any]:
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'digits/table1'")
    return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))


def ready(tmp_path: Path, accuracy: float = 90.0) -> Result:
    path = tmp_path / f"checkpoint-{os.getpid()}.pt"
    path.write_bytes(b"weights")
    return Result({"test/final": accuracy}, path, {"name": "digits", "digest": "d" * 64, "source": "scikit-learn"})


def in_child(work: Any, *arguments: Any) -> Any:
    """A process that has begun its work: it has set the event that it is given first."""
    begun = FORK.Event()
    child = FORK.Process(target=work, args=(begun, *arguments), daemon=True)
    child.start()
    assert begun.wait(60)
    return child


def hold(begun: Any, uri: str) -> None:
    Store("digits", uri).open_seed("table1", cells()[0], 42, "cpu")
    begun.set()
    time.sleep(600)


def test_a_living_process_keeps_its_seed_and_a_dead_ones_goes_on_at_once(uri: str) -> None:
    child = in_child(hold, uri)
    (held,) = runs(uri)
    ours = Store("digits", uri)
    with pytest.raises(ClaimedError, match=f"trained by .* {child.pid} "):
        ours.open_seed("table1", cells()[0], 42, "cpu", held.info.run_id)
    assert ours.look(held.info.run_id)[0] == "running"
    ours.open_seed("table1", cells()[0], 43, "cpu")  # the next one
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert ours.look(held.info.run_id)[0] == "left"
    assert ours.open_seed("table1", cells()[0], 42, "cpu", held.info.run_id) == (held.info.run_id, 0)
    with pytest.raises(ClaimedError):  # within one process too
        Store("digits", uri).open_seed("table1", cells()[0], 42, "cpu", held.info.run_id)


def test_a_dead_process_whose_state_is_lost_leaves_a_killed_run(uri: str) -> None:
    child = in_child(hold, uri)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    new, _ = Store("digits", uri).open_seed("table1", cells()[0], 42, "cpu")
    assert {run.info.run_id == new: run.info.status for run in runs(uri)} == {True: "RUNNING", False: "KILLED"}


def test_a_store_that_goes_away_while_a_seed_is_claimed_leaves_one_run(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Store("digits", uri)

    def log(_: Store, run_id: str, params: dict[str, str]) -> None:
        if "seed" in params:  # not those of its cell
            raise OSError("the store is away")

    with monkeypatch.context() as away:
        away.setattr(Store, "_log_params", log)
        with pytest.raises(store.StoreError, match="the store is away"):
            ours.open_seed("table1", cells()[0], 42, "cpu")
    run_id, _ = ours.open_seed("table1", cells()[0], 42, "cpu")
    assert [(run.info.run_id, run.info.status) for run in runs(uri)] == [(run_id, "RUNNING")]


def test_another_hosts_claim_holds_until_it_expires(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = Store("digits", uri)
    run_id, _ = there.open_seed("table1", cells()[0], 42, "cpu")
    here = Store("digits", uri)
    there.client.set_tag(run_id, "owner", f"elsewhere {os.getpid()} 1")
    with pytest.raises(ClaimedError, match="trained by elsewhere"):
        here.open_seed("table1", cells()[0], 42, "cpu", run_id)
    there.client.set_tag(run_id, "expires", "1700000000000")
    assert here.open_seed("table1", cells()[0], 42, "cpu", run_id) == (run_id, 0)
    monkeypatch.setattr(store, "owner", lambda: f"elsewhere {os.getpid()} 1")  # there again, back from a long sleep
    with pytest.raises(ClaimedError):
        there.log_epoch(run_id, Epoch(1, 2, {"loss": 1.0}))
    with pytest.raises(ClaimedError):
        there.finish(run_id, ready(tmp_path))
    with pytest.raises(ClaimedError):
        there.fail(run_id, "the loss is nan")
    assert runs(uri)[0].data.metrics == {}


def test_a_claim_is_renewed_while_the_training_is_silent(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    ours = Store("digits", uri)
    run_id, _ = ours.open_seed("table1", cells()[0], 42, "cpu")
    first = ours.client.get_run(run_id).data.tags["expires"]
    for _ in range(200):
        if ours.client.get_run(run_id).data.tags["expires"] != first:
            break
        time.sleep(0.05)
    else:
        pytest.fail("never renewed")
    ours.pause(run_id)
    assert not lease.Lease.held & {run_id}
    assert ours.lease.idle is None


def test_of_several_that_claim_one_seed_at_the_same_moment_one_gets_it(uri: str) -> None:
    stores = [Store("digits", uri) for _ in range(4)]
    stores[0].open_seed("table1", cells()[0], 41, "cpu")
    start = threading.Barrier(4)

    def claim(one: Store, going_on: str | None) -> list[tuple[int, str]]:
        start.wait()
        got = []
        for seed in (42, 43):
            with suppress(ClaimedError):
                got.append((seed, one.open_seed("table1", cells()[1], seed, "cpu", going_on)[0]))
        return got

    def all_claim(going_on: str | None) -> dict[int, str]:
        with ThreadPoolExecutor(4) as pool:
            got = [one for share in pool.map(claim, stores, [going_on] * 4) for one in share]
        assert len(dict(got)) == len(got), "a seed twice"
        return dict(got)

    got = all_claim(None)
    assert set(got) == {42, 43}
    assert len(runs(uri)) == 3
    assert len(runs(uri, "cell")) == 2
    assert not any(store.UNSETTLED in run.data.tags for run in runs(uri) + runs(uri, "cell"))
    for one in stores:
        if got[42] in one.lease.mine:
            one.pause(got[42])
    assert all_claim(got[42]) == {42: got[42]}  # now all have its state


def test_a_run_is_taken_over_once_however_its_parts_are_read(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process in the middle of the first one's taking, or one that has read its status before and its tags after."""
    first, second = Store("digits", uri), Store("digits", uri)
    seed = ("table1", cells()[0], 42, "cpu")
    run_id, _ = first.open_seed(*seed)
    first.pause(run_id)
    (before,) = runs(uri)
    update = first.client.update_run

    def meanwhile(*arguments: Any) -> None:
        with pytest.raises(ClaimedError):
            second.open_seed(*seed, run_id)
        update(*arguments)

    monkeypatch.setattr(first.client, "update_run", meanwhile)
    assert first.open_seed(*seed, run_id) == (run_id, 0)
    (after,) = runs(uri)
    monkeypatch.setattr(second, "_search", lambda query: [Run(before.info, after.data)])
    with pytest.raises(ClaimedError):
        second.open_seed(*seed, run_id)


def test_one_with_a_state_and_one_without_do_not_both_train(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second makes a run of its own just before the first, which goes on in the old one, is marked as running."""
    first, second = Store("digits", uri), Store("digits", uri)
    seed = ("table1", cells()[0], 42, "cpu")
    run_id, _ = first.open_seed(*seed)
    first.pause(run_id)
    update, made = first.client.update_run, []

    def meanwhile(*arguments: Any) -> None:
        made.append(second.open_seed(*seed)[0])
        update(*arguments)

    monkeypatch.setattr(first.client, "update_run", meanwhile)
    with pytest.raises(ClaimedError) as caught:
        first.open_seed(*seed, run_id)
    assert [caught.value.run_id] == made
    assert {run.info.run_id: run.info.status for run in runs(uri)} == {run_id: "KILLED", made[0]: "RUNNING"}


def test_a_process_that_died_while_it_took_a_run_over_is_no_obstacle(uri: str) -> None:
    ours = Store("digits", uri)
    run_id, _ = ours.open_seed("table1", cells()[0], 42, "cpu")
    ours.pause(run_id)
    until = get_current_time_millis() + 60_000
    ours.client.log_param(run_id, "taken over/1", f"elsewhere 1 1 ab until {until}")
    with pytest.raises(ClaimedError):
        ours.open_seed("table1", cells()[0], 42, "cpu", run_id)
    ours.client.log_param(run_id, "taken over/2", f"elsewhere 1 1 ab until {until - 60_000}")
    assert ours.open_seed("table1", cells()[0], 42, "cpu", run_id) == (run_id, 0)


def quick_training(cell: spec.Cell, seed: int, *, out: Path, **options: Any) -> Any:
    time.sleep(0.3)
    yield Epoch(1, 1, {"loss": 1.0, "test": 50.0 + seed, "images_per_s": 1.0})
    out.write_bytes(f"{cell.hash} {seed}".encode())
    yield Result({"test/final": 50.0 + seed}, out, ready(out.parent).data)


def train(begun: Any, uri: str, jobs: list[schedule.Job], log: Path) -> None:
    def note(job: schedule.Job, event: Any) -> None:
        if isinstance(event, Result):
            with log.open("a") as file:
                file.write(f"{job.key}\n")

    begun.set()
    where = {"root": log.parent, "state_dir": str(log.parent / "state")}
    failed = schedule.run(jobs, Store("digits", uri), parallel=1, device="cpu", progress=note, **where)
    assert failed == {}


def test_two_processes_share_the_seeds_and_both_end_with_all_of_them(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_cell", quick_training)
    monkeypatch.setattr(schedule, "LOOK_EVERY", 0.1)
    rows = {"table1": spec.load_spec("table1").row[:2]}
    jobs = schedule.jobs_of(rows, spec.load_profile("digits"), 3)
    children = [in_child(train, uri, jobs, tmp_path / f"log{i}") for i in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    shares = [(tmp_path / f"log{i}").read_text().splitlines() for i in range(2)]
    assert all(shares), "one did all the work"
    assert sorted(shares[0] + shares[1]) == sorted(str(job.key) for job in jobs)
    assert [run.info.status for run in runs(uri)] == ["FINISHED"] * 6
    assert {(p.info.status, p.data.metrics["mean/test/final"]) for p in runs(uri, "cell")} == {("FINISHED", 93.0)}


def hang(begun: Any, uri: str, jobs: list[schedule.Job], tmp_path: Path) -> None:
    def training(cell: spec.Cell, seed: int, **options: Any) -> Any:
        yield Epoch(1, 2, {"loss": 1.0, "test": 1.0, "images_per_s": 1.0})
        begun.set()
        time.sleep(600)

    workers.run_cell = training
    train(FORK.Event(), uri, jobs, tmp_path / "log")


def test_a_seed_that_is_waited_for_is_taken_over_when_its_process_dies(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "run_cell", quick_training)
    monkeypatch.setattr(schedule, "LOOK_EVERY", 0.1)
    job = schedule.Job("table1", cells()[0], 42)
    child = in_child(hang, uri, [job], tmp_path)
    told: list[Any] = []

    def note(_: schedule.Job, event: Any) -> None:
        told.append(event)
        if isinstance(event, schedule.Note):
            assert f" {child.pid} " in event
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    ours = Store("digits", uri)
    failed = schedule.run([job], ours, parallel=1, device="cpu", progress=note, state_dir=str(tmp_path), root=tmp_path)
    assert failed == {}
    assert [type(event) for event in told] == [schedule.Note, Epoch, Result]
    assert sorted(run.info.status for run in runs(uri)) == ["FINISHED", "KILLED"]


def test_parents_left_open_or_with_too_few_seeds_are_renewed(uri: str, tmp_path: Path) -> None:
    ours = Store("digits", uri)
    for seed in (42, 43):
        run_id, _ = ours.open_seed("table1", cells()[0], seed, "cpu")
        assert [run.info.status for run in runs(uri, "cell")] == ["FINISHED"]  # at rest from the start
        ours.finish(run_id, ready(tmp_path, float(seed)))
        if seed == 42:
            ours.close_cell("table1", cells()[0])
    (parent,) = runs(uri, "cell")
    assert parent.data.params["architecture"] == cells()[0].architecture
    assert parent.data.metrics["mean/test/final"] == 42.0
    ours.client.update_run(parent.info.run_id, "RUNNING")
    assert schedule.run([], ours, parallel=1, device="cpu", progress=lambda job, event: None) == {}
    (parent,) = runs(uri, "cell")
    assert (parent.info.status, parent.data.metrics["mean/test/final"]) == ("FINISHED", 42.5)


def test_a_deleted_experiment_is_named_with_its_remedy(uri: str) -> None:
    ours = Store("digits", uri)
    ours.open_seed("table1", cells()[0], 42, "cpu")
    (experiment,) = ours.client.search_experiments(filter_string="name = 'digits/table1'")
    ours.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(store.StoreError, match=r"experiment digits/table1 was deleted; `mlflow experiments restore"):
        ours.open_seed("table1", cells()[0], 43, "cpu")


def test_an_experiment_that_cannot_be_made_says_why(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Store("digits", uri)

    def full(*_: Any, **__: Any) -> None:
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    monkeypatch.setattr(ours.client, "create_experiment", full)
    with pytest.raises(store.StoreError, match="disk is full; free some space"):
        ours.open_seed("table1", cells()[0], 42, "cpu")


def test_a_reason_of_several_lines_is_one_line_of_a_table(uri: str) -> None:
    ours = Store("digits", uri)
    run_id, _ = ours.open_seed("table1", cells()[0], 42, "cpu")
    ours.fail(run_id, "RuntimeError: broken\n  | in two")
    assert list(ours.failures().values()) == ["RuntimeError: broken | in two"]
    assert [one.reason for one in ours.records()] == ["RuntimeError: broken | in two"]  # what the tables are made of


def test_the_kind_of_processor_names_what_decides_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    free = store.processor()
    assert torch.backends.cpu.get_cpu_capability() in free
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert store.processor().endswith("oneDNN held to AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "DEFAULT" in store.processor()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert store.processor().endswith("no oneDNN")
    assert len({free, store.processor()}) == 2
