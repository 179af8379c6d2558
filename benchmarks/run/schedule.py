"""Which seeds of which cells still have to be trained, in which order, and what becomes of them in the store."""

import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import torch
from mlflow.utils.time import get_current_time_millis

from benchmarks import data
from benchmarks.record import Epoch, Result
from benchmarks.run.network import network_of
from benchmarks.run.outbox import Outbox
from benchmarks.run.state import States, Stop
from benchmarks.run.together import Group
from benchmarks.run.train import StoppedError
from benchmarks.run.workers import Event, Note, workers
from benchmarks.spec import Cell, Profile, Row, SpecError, resolve
from benchmarks.store import CheckpointError, ClaimedError, Store
from benchmarks.tracking import without_secrets

FIRST_SEED = 42  # the paper's
STATE_DIR = "state"
LOOK_EVERY = 5.0  # seconds between two looks at what other processes train


@dataclass(frozen=True)
class Job:
    """One seed of one cell, and the table in whose experiment it is logged."""

    table: str
    cell: Cell
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.cell.hash, self.seed

    @property
    def needs(self) -> tuple[str, int] | None:
        return (self.cell.ann.hash, self.seed) if self.cell.ann else None


class Elsewhere:
    """Another process has finished the seed, by the same store."""


Progress = Callable[[Job, Epoch | Result | Elsewhere | Note | str], None]


def jobs_of(rows: dict[str, list[Row]], profile: Profile, seeds: int) -> list[Job]:
    """All jobs behind those rows whose data the profile names, each once, upstream first, seed by seed: one seed is whole early."""
    jobs: dict[tuple[str, int], Job] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for table, table_rows in rows.items():
            for row in table_rows:
                if row.dataset not in profile.datasets:
                    continue
                cell = resolve(row, profile)
                for needed in (cell.ann, cell):
                    if needed:
                        job = Job(table, needed, seed)
                        jobs.setdefault(job.key, job)
    return list(jobs.values())


def check(jobs: list[Job]) -> None:
    """Find out before anything is trained whether each cell names data and a network that there are, and leaves images to train
    and to validate.

    Raises:
        SpecError: it does not.
    """
    shapes = {}
    for job in jobs:
        cell = job.cell
        size, share = data.SIZES.get(cell.dataset), cell.recipe.validation
        if size and size.train * (1 - share) < size.classes:
            raise SpecError(f"{cell.name}: validation = {share} leaves less than one training image a class; lower it")
        if size and share and size.train / size.classes * share < 0.5:  # which is rounded
            raise SpecError(
                f"{cell.name}: validation = {share} leaves no validation image a class; raise it, or set it to 0"
            )
        shapes[cell.dataset, cell.architecture, str(cell.network)] = cell
    for cell in shapes.values():
        if cell.dataset not in data.SIZES:
            raise SpecError(f"{cell.name}: unknown data set {cell.dataset!r}; known: {', '.join(data.NAMES)}")
        try:
            with torch.device("meta"):
                network_of(cell, data.SIZES[cell.dataset])
        except Exception as error:  # whatever a builder says to options that it does not take
            raise SpecError(f"{cell.name}: its network can't be built with {cell.network}: {error}") from error


def run(
    jobs: list[Job],
    store: Store,
    *,
    parallel: int | None,
    device: str,
    progress: Progress,
    state_dir: str = STATE_DIR,
    stop: Stop | None = None,
    group: Group | None = None,
    ray: str | None = None,
    **options: Any,
) -> dict[str, str]:
    """Train what the store does not hold yet. A seed that fails does not stop the others; an interrupted one goes on.

    Seeds that other processes are training by the same store are left to them, waited for, and taken over if they die. While the
    store is away trainings go on, and what they want to log waits (:mod:`benchmarks.run.outbox`).

    Args:
        parallel: seeds trained at once; None: as many as Ray's cluster has room for.
        state_dir: folder of the states of unfinished trainings.
        group: the processes that share each training, of which this one leads.
        stop: once it is true, running trainings keep their state and end, and no other starts.
        ray: address of the cluster whose machines train; ``local``, or None and several at once: this one alone.
        options: what :func:`benchmarks.run.train.run_cell` takes besides: ``root``, ``data_workers``, ``deterministic``.

    Returns:
        For each cell that could not be run, why (by cell hash).

    Raises:
        SpecError: ``state_dir`` can't be written to.
        StoreError: the store stopped taking what is logged, and not just for a while; finished seeds are in it.
        StoppedError: ``stop`` said so.
    """
    stop = stop or Stop()
    if "://" not in state_dir:
        state_dir = str(Path(state_dir).resolve())  # workers run elsewhere
    try:
        files, folder = fsspec.core.url_to_fs(state_dir)
        files.makedirs(folder, exist_ok=True)
        with files.open(probe := f"{folder.rstrip('/')}/.lmht-{uuid.uuid4().hex}", "wb"):
            pass
        files.rm(probe)
    except Exception as error:  # whatever a file system says that is away, or only read from
        why = without_secrets(f"{state_dir}: {error or type(error).__name__}", state_dir)
        raise SpecError(f"states can't be kept in {why}; name a folder that can be written to") from error
    done = store.seeds()
    finished = {(row.cell, row.seed): row.run_id for row in done.itertuples()} if len(done) else {}
    waiting = [job for job in jobs if job.key not in finished]
    failed: dict[tuple[str, int], str] = {}
    running: dict[Any, tuple[Job, str]] = {}
    states: dict[tuple[str, int], States] = {}
    logged: dict[tuple[str, int], int] = {}  # epochs that the store has already, of a training that goes on
    elsewhere: dict[tuple[str, int], tuple[Job, str]] = {}  # seeds that other processes train, and their runs
    looked = 0.0
    stopped = ""
    outbox = Outbox(
        lambda error: progress(jobs[0], Note(f"{error.summary}; trainings go on, what they log is kept for it"))
    )
    store.renew_cells()
    temporary = tempfile.TemporaryDirectory(prefix="lmht-", ignore_cleanup_errors=True)

    def last() -> None:
        # In a thread, as this one may be in the middle of a call to the store; a store that does not answer is left.
        closing = threading.Thread(target=store.leave, daemon=True)
        closing.start()
        temporary.cleanup()
        closing.join(1)

    stop.last = last
    with (
        temporary as scratch,
        workers(parallel, device, stop, group, ray) as pool,
        store.leaving(),
    ):

        def start(job: Job) -> None:
            ann = None
            if job.needs:
                ann = store.checkpoint(finished[job.needs], fresh(Path(scratch), "ann", job))
            states[job.key] = States(state_dir, job.cell, job.seed)
            run_id, logged[job.key] = store.open_seed(job.table, job.cell, job.seed, device, states[job.key].run_id())
            out = fresh(Path(scratch), "out", job) / "checkpoint.pt"
            work = {"device": device, "out": out, "ann": ann, "state_dir": state_dir, "run_id": run_id}
            events = pool.submit(job.cell, job.seed, **work, **options)
            running[events] = job, run_id

        def leave(job: Job, claimed: ClaimedError) -> None:
            elsewhere[job.key] = job, claimed.run_id
            progress(job, Note(f"{job.cell.name}, seed {job.seed}: left to {claimed.owner}"))

        def log(job: Job, run_id: str, event: Event, when: int) -> None:
            """Put an event of a training into the store; to be repeated until it is there."""
            try:
                if isinstance(event, Epoch):
                    if event.epoch > logged[job.key]:
                        store.log_epoch(run_id, event, when)
                    return
                if isinstance(event, StoppedError):
                    store.pause(run_id)
                    return
                if isinstance(event, Result):
                    store.finish(run_id, event, when)
                    states[job.key].discard()
                    finished[job.key] = run_id
                    store.close_cell(job.table, job.cell)
                else:
                    store.fail(run_id, event)
                    failed[job.key] = event
            except ClaimedError as claimed:  # this process was away for so long that its claim ran out
                for events in [events for events, (_, its) in running.items() if its == run_id]:
                    pool.drop(events)
                    del running[events]
                leave(job, claimed)
                return
            progress(job, event)

        def look() -> None:
            """Ask what has become of the seeds that others train."""
            for job, run_id in list(elsewhere.values()):
                outcome, more = store.look(run_id)
                if outcome == "running":
                    continue
                del elsewhere[job.key]
                if outcome == "left":
                    waiting.append(job)
                elif outcome == "finished":
                    finished[job.key] = run_id
                    progress(job, Elsewhere())
                else:
                    failed[job.key] = more
                    progress(job, more)

        while running or ((waiting or elsewhere or outbox.calls) and not stop()):
            outbox.flush()
            if elsewhere and time.monotonic() - looked > LOOK_EVERY and outbox.attempt(look):
                looked = time.monotonic()
            for job in list(waiting) * (not stop()):
                missing = job.needs if job.needs not in finished else None
                if missing and missing in failed:
                    waiting.remove(job)
                    failed[job.key] = f"its quantised ANN was not run: {failed[missing]}"
                elif not missing and len(running) < pool.room(job.cell, options.get("data_workers", 0)):
                    try:
                        if not outbox.attempt(partial(start, job)):
                            break
                    except CheckpointError as error:  # of its quantised ANN: only what starts from it fails
                        failed[job.key] = str(error)
                        progress(job, str(error))
                    except ClaimedError as claimed:
                        leave(job, claimed)
                    waiting.remove(job)
            if not running:
                if waiting or elsewhere or outbox.calls:
                    time.sleep(0.1)
                continue
            events, event = pool.next_event(list(running))
            job, run_id = running[events]
            if isinstance(event, Epoch | Note):
                progress(job, event)
            else:
                del running[events]
            if isinstance(event, Note):
                continue
            if isinstance(event, StoppedError):
                stopped = f"{job.cell.name}, seed {job.seed}: {event}"
            outbox.put(partial(log, job, run_id, event, get_current_time_millis()))
    if stopped or waiting or elsewhere or outbox.calls:
        raise StoppedError(stopped or "stopped between two trainings")
    return {cell: reason for (cell, _), reason in failed.items()}


def fresh(scratch: Path, kind: str, job: Job) -> Path:
    folder = scratch / f"{kind}-{job.cell.hash}-{job.seed}"
    folder.mkdir(exist_ok=True)
    return folder
