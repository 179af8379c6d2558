"""Where trainings run: one after another in this process, shared by several that train together, or spread by Ray."""

import logging
import os
import re
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.record import Epoch, Result
from benchmarks.run.state import Stop
from benchmarks.run.together import Group
from benchmarks.run.train import StoppedError, TrainingError, run_cell
from benchmarks.spec import Cell

REMEDIES = {  # what a failed training says: what to do
    "OutOfMemory|MemoryError|allocate memory|out of memory": "lower the recipe's batch_size and raise its accumulate, or train "
    "fewer seeds at once (--jobs)",
    "DataLoader worker": "a process that loads images was killed, mostly for want of memory or of /dev/shm: lower --data-workers; "
    "the same command goes on from the last state",
    "No space left": "free some space; the same command goes on from the last state",
}

Event = Epoch | Result | StoppedError | str


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


def reason(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}"
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

    def submit(self, cell: Cell, seed: int, **options: Any) -> Iterator[Event]:
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

    def submit(self, cell: Cell, seed: int, **options: Any) -> Iterator[Event]:
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


class OnRay:
    """Spreads jobs over Ray's workers: the cores of this machine, or the cluster named by ``RAY_ADDRESS``."""

    def __init__(self, parallel: int, device: str, stop: Stop) -> None:
        import ray

        self.stop = stop
        self.ray: Any = ray
        if not ray.is_initialized():
            here = os.environ.get("RAY_ADDRESS")
            local: dict[str, Any] = {} if here else {"num_cpus": parallel, "include_dashboard": False}
            ray.init(
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}},
                **local,
            )
            stop.listen()
        gpus = 0 if device == "cpu" else 1
        self.remote = self.ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming", max_retries=0)(_events)
        self.flag = self.ray.remote(num_cpus=0)(Flag).remote()

    def submit(self, cell: Cell, seed: int, **options: Any) -> Any:
        return self.remote.remote(cell, seed, stopping=Asking(self.flag), **options)

    def next_event(self, running: list[Any]) -> tuple[Any, Event]:
        ended: list[Any] = []
        while not ended:
            if self.stop():
                self.flag.up.remote()
            ended = self.ray.wait(running, num_returns=1, timeout=1)[0]
        ready: Any = ended[0]
        try:
            return ready, self.ray.get(next(ready))
        except StopIteration:
            return ready, "its worker ended without a result"
        except self.ray.exceptions.RayError as error:  # a worker that died takes its own seed with it, no other
            return ready, f"its worker died: {str(error).splitlines()[0]}"

    def drop(self, events: Any) -> None:
        self.ray.cancel(events)


@contextmanager
def workers(parallel: int, device: str, stop: Stop, group: Group | None) -> Iterator[Inline | OnRay]:
    if group:
        yield Shared(stop, group)
        return
    if parallel == 1:
        yield Inline(stop)
        return
    pool = OnRay(parallel, device, stop)
    try:
        yield pool
    finally:
        pool.ray.shutdown()
