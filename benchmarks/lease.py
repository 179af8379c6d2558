"""Whose a run is: a seed that is being trained belongs to a process, as tags of its run say, and to nobody once that is dead.

Tags: ``owner`` (host, process, and when that started) and ``expires`` (ms since 1970), renewed every minute. On its own host a
process is looked up, so that a killed one's seeds are free at once; seen from another host it is dead when its claim expires.
"""

import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

RENEWED = 60.0  # seconds
LASTS = 300.0


def host() -> str:
    """This machine, and which of its containers: process numbers mean something within it."""
    with suppress(OSError):
        return f"{platform.node()}/{os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def started(pid: int) -> str:
    """When a process of this host started, in its own units; empty if there is none."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError):
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return fields[18] if state not in "ZX" else ""
        return ""
    with suppress(OSError):
        os.kill(pid, 0)
        return "running"
    return ""


def owner() -> str:
    return f"{host()} {os.getpid()} {started(os.getpid())}"


def at_work(whose: str, expires: str, held: bool) -> bool:
    """Whether a claim's owner lives; of one of this process's own, whether it is ``held``."""
    if whose == owner():
        return held
    where, pid, since = whose.rsplit(" ", 2) if whose.count(" ") >= 2 else ("", "", "")
    if where == host():
        return pid.isdigit() and started(int(pid)) == since
    return expires.isdigit() and int(expires) > get_current_time_millis()


class Lease:
    """The runs that this process trains in one store, and a thread that renews its claims on them."""

    held: ClassVar[set[str]] = set()  # in all stores of this process

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.mine: set[str] = set()
        self.idle: threading.Event | None = None  # ends the thread

    def tags(self) -> dict[str, str]:
        """What marks a run as this process's."""
        return {"owner": owner(), "expires": str(get_current_time_millis() + int(1000 * LASTS))}

    def take(self, run_id: str) -> None:
        """Count a run, marked already, as this process's, and renew the mark from now on."""
        self.mine.add(run_id)
        Lease.held.add(run_id)
        if self.idle is None:
            self.idle = threading.Event()
            threading.Thread(target=self._renew, args=(self.idle,), daemon=True).start()

    def release(self, run_id: str) -> None:
        self.mine.discard(run_id)
        Lease.held.discard(run_id)
        if self.idle and not self.mine:
            self.idle.set()
            self.idle = None

    def alive(self, run: Run) -> bool:
        """Whether a run's owner, if it has one, is at work on it."""
        tags = run.data.tags
        return at_work(tags.get("owner", ""), tags.get("expires", ""), run.info.run_id in Lease.held)

    def _renew(self, idle: threading.Event) -> None:
        while not idle.wait(RENEWED):
            for run_id in list(self.mine):
                with suppress(Exception):  # a store that is away: the next renewal, or what is logged, will tell
                    self.client.set_tag(run_id, "expires", self.tags()["expires"])
