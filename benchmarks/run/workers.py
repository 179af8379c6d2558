"""Where trainings run: one after another in this process, shared by several that train together, or spread by Ray."""

import logging
import math
import re
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import data
from benchmarks.record import Epoch, Result
from benchmarks.run.state import Stop
from benchmarks.run.together import Group
from benchmarks.run.train import StoppedError, TrainingError, run_cell
from benchmarks.spec import Cell, SpecError

REMEDIES = {  # what a failed training says: what to do
    "OutOfMemory|MemoryError|allocate memory|out of memory": "lower the recipe's batch_size and raise its accumulate, or train "
    "fewer seeds at once (--jobs)",
    "DataLoader worker": "a process that loads images was killed, mostly for want of memory or of /dev/shm: lower --data-workers; "
    "the same command goes on from the last state",
    "have a deterministic implementation": "without --deterministic it is trained, to other last bits in every run",
    "No space left": "free some space; the same command goes on from the last state",
}

RETRIES = 3  # of a training whose worker dies, before it gets one epoch further


class Note(str):
    """Something to be told while jobs go on."""


Event = Epoch | Result | StoppedError | Note | str


def _events(cell: Cell, seed: int, **options: Any) -> Iterator[Event]:
    """What a worker sends: epochs, then the result, or the reason why there is none."""
    try:
        yield from _foreseen(cell, seed, **options)
    except Exception as error:  # one broken cell must not lose the others; the reason is logged and shown
        yield reason(error)


def _foreseen(cell: Cell, seed: int, **options: Any) -> Iterator[Event]:
    """The same, but for errors that nobody foresaw: of several processes they hit one."""
    try:
        yield from run_cell(cell, seed, **options)
    except StoppedError as stopped:
        yield stopped
    except (data.DataError, TrainingError) as error:
        yield str(error)


def _away(
    cell: Cell, seed: int, ann: bytes | None, folder: Path | None, **options: Any
) -> Iterator[tuple[Event, bytes]]:
    """The same in a worker, perhaps on another machine: checkpoints come and go as bytes.

    ``folder``: where the command that began it removes what a worker leaves that is ended by force; None on other machines.
    """
    with tempfile.TemporaryDirectory(prefix="lmht-", dir=folder) as scratch:
        source, out = Path(scratch, "ann.pt"), Path(scratch, "checkpoint.pt")
        if ann is not None:
            source.write_bytes(ann)
        for event in _events(cell, seed, ann=None if ann is None else source, out=out, **options):
            yield event, out.read_bytes() if isinstance(event, Result) else b""


def reason(error: Exception) -> str:
    return advised(f"{type(error).__name__}: {error}")


def advised(said: str) -> str:
    """What an error says, with what to do if that is known."""
    remedy = next((remedy for words, remedy in REMEDIES.items() if re.search(words, said)), "")
    return f"{said}; {remedy}" if remedy else said


class Flag:
    """Ray actor that tells every worker of the cluster whether to stop. (Ray's own cancel drops what a worker still sends.)"""

    raised = False

    def up(self) -> None:
        self.raised = True

    def is_up(self) -> bool:
        return self.raised


class Asking:
    """Whether the flag is up, in a worker; asked once a second."""

    def __init__(self, flag: Any) -> None:
        self.flag = flag
        self.answer, self.next = False, 0.0

    def __call__(self) -> bool:
        if not self.answer and time.monotonic() >= self.next:
            import ray

            self.answer = ray.get(self.flag.is_up.remote())
            self.next = time.monotonic() + 1
        return self.answer


class Inline:
    """Runs jobs one at a time in this process."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def room(self, cell: Cell, data_workers: int = 0) -> int:
        return 1

    def submit(self, cell: Cell, seed: int, **options: Any) -> Any:
        return _events(cell, seed, stopping=self.stop, **options)

    def next_event(self, running: list[Any]) -> tuple[Any, Event]:
        return running[0], next(running[0])

    def drop(self, events: Iterator[Event]) -> None:
        """End a training whose events nobody wants any more."""
        if isinstance(events, Generator):
            events.close()


class Shared(Inline):
    """Runs jobs one at a time in all processes of a group, of which this one leads."""

    def __init__(self, stop: Stop, group: Group) -> None:
        super().__init__(stop)
        self.group = group

    def submit(self, cell: Cell, seed: int, **options: Any) -> Any:
        return self._lead(cell, seed, options)

    def _lead(self, cell: Cell, seed: int, options: dict[str, Any]) -> Iterator[Event]:
        self.group.tell((cell, seed, options))
        try:
            with self.group.training():
                for event in _foreseen(cell, seed, stopping=self.stop, **options):
                    if isinstance(event, StoppedError) and not self.stop():  # another process was told to
                        self.stop.signal = signal.SIGTERM
                    yield event
        except Exception as error:  # the others don't know of it, and can't be led into another training
            self.stop.signal = self.stop.signal or signal.SIGTERM
            yield reason(error)


def follow(group: Group, stop: Stop) -> None:
    """Take part in the leader's trainings until it ends.

    Raises:
        TrainingError: an error that hits this process alone, or the leader has gone.
    """
    try:
        while (work := group.hear()) is not None:
            cell, seed, options = work
            with group.training():
                for _ in _foreseen(cell, seed, stopping=stop, **options):
                    pass
    except Exception as error:  # torchrun or Fabric end the other processes when this one does
        group.in_step = False
        raise TrainingError(f"process {group.rank}: {reason(error)}") from error


@dataclass(eq=False)
class Spread:
    """A training on Ray: what it is, where its events come from, how far it has come, and how often it died since."""

    cell: Cell
    seed: int
    options: dict[str, Any]
    events: Any = None
    epochs: int = 0
    deaths: int = 0


class OnRay:
    """Spreads jobs over Ray's workers: of this machine (``local``), or of the cluster at an address.

    A training whose worker or machine dies goes on in another one, from its state.

    Args:
        parallel: trainings at once; None: as many as the cluster has room for.

    Raises:
        SpecError: no cluster answers at the address, or none starts here.
    """

    def __init__(self, address: str, parallel: int | None, device: str, stop: Stop) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray: Any = ray
        self.local, self.parallel, self.device, self.stop = address == "local", parallel, device, stop
        local: dict[str, Any] = {"num_cpus": parallel, "include_dashboard": False} if self.local else {}
        try:
            ray.init(
                address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}},
                **local,
            )
        except (OSError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            if self.local:  # a path of its sockets that is too long, say
                raise SpecError(f"Ray does not start on this machine: {why}; --jobs 1 goes without it") from error
            raise SpecError(f"no Ray cluster answers at {address}: {why}; `ray start --head` starts one") from error
        stop.listen()
        self.remote = self.ray.remote(num_returns="streaming", max_retries=0)(_away)
        # on this machine: no other may take it along
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.flag = self.ray.remote(num_cpus=0, scheduling_strategy=here)(Flag).remote()

    def wants(self, cell: Cell, data_workers: int = 0) -> dict[str, float]:
        """What a training takes of a machine; on this one alone ``parallel`` decides, and trainings share its GPUs."""
        gpus = {"GPU": 1.0} if self.device != "cpu" else {}
        if gpus and self.local and self.parallel:
            sharing = math.ceil(self.parallel / max(1, torch.cuda.device_count()))
            gpus = {"GPU": math.floor(1e4 / sharing) / 1e4}  # Ray counts in ten-thousandths
        return {"CPU": 1 if self.local else (cell.threads or 1) + data_workers} | gpus

    def room(self, cell: Cell, data_workers: int = 0) -> int:
        """How many trainings like this run at once."""
        if self.parallel:
            return self.parallel
        there = self.ray.cluster_resources()
        return max(1, min(int(there.get(kind, 0) // number) for kind, number in self.wants(cell, data_workers).items()))

    def submit(self, cell: Cell, seed: int, **options: Any) -> Spread:
        """Begin a training.

        Raises:
            SpecError: no machine of the cluster will ever have what it takes.
        """
        wants = self.wants(cell, options.get("data_workers", 0))
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(one.get(kind, 0) >= number for kind, number in wants.items()) for one in machines):

            def words(resources: Mapping[str, float]) -> str:
                return " and ".join(f"{resources.get(kind, 0):g} {kind}" for kind in wants)

            raise SpecError(
                f"{cell.name} wants {words(wants)} of one machine; those of the Ray cluster have "
                f"{', '.join(words(one) for one in machines)}: lower threads or --data-workers, or add a machine"
            )
        training = Spread(cell, seed, options)
        self._begin(training)
        return training

    def _begin(self, training: Spread) -> None:
        options = dict(training.options)
        out, ann = options.pop("out"), options.pop("ann", None)
        wants = self.wants(training.cell, options.get("data_workers", 0))
        remote = self.remote.options(num_cpus=wants["CPU"], num_gpus=wants.get("GPU", 0))
        content = ann.read_bytes() if ann else None
        folder = out.parent if self.local else None
        training.events = remote.remote(
            training.cell, training.seed, content, folder, stopping=Asking(self.flag), **options
        )

    def next_event(self, running: list[Any]) -> tuple[Any, Event]:
        while True:
            if self.stop():
                self.flag.up.remote()
            ended: list[Any] = self.ray.wait([one.events for one in running], num_returns=1, timeout=1)[0]
            if not ended:
                continue
            training = next(one for one in running if one.events == ended[0])
            try:
                event, content = self.ray.get(next(training.events))
            except StopIteration:
                return training, "its worker ended without a result"
            except self.ray.exceptions.RayError as error:
                return training, self._died(training, str(error).strip().splitlines()[0])
            if isinstance(event, Epoch):
                if event.epoch <= training.epochs:  # told again after a death
                    continue
                training.epochs, training.deaths = event.epoch, 0
            if isinstance(event, Result):
                training.options["out"].write_bytes(content)
                event = replace(event, checkpoint=training.options["out"])
            return training, event

    def _died(self, training: Spread, why: str) -> Event:
        """Begin a training again whose worker or machine has died, unless it never gets any further."""
        training.deaths += 1
        if self.stop():
            return StoppedError("its worker died; its last state is kept")
        if training.deaths > RETRIES:
            return advised(f"its worker died {training.deaths} times in one epoch: {why}")
        self._begin(training)
        return Note(f"{training.cell.name}, seed {training.seed}: its worker died ({why}); it goes on in another")

    def drop(self, training: Any) -> None:
        self.ray.cancel(training.events)


@contextmanager
def workers(
    parallel: int | None, device: str, stop: Stop, group: Group | None, ray: str | None
) -> Iterator[Inline | OnRay]:
    if group:
        yield Shared(stop, group)
        return
    if parallel == 1 and not ray:
        yield Inline(stop)
        return
    pool = OnRay(ray or "local", parallel, device, stop)
    try:
        yield pool
    finally:
        pool.ray.shutdown()
