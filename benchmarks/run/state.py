"""Exact resume: what a training keeps of itself, so that an interrupted one ends bit for bit as one that was not.

A state file is one line of JSON (format, cell, seed, MLflow run, SHA-256 of the rest), then what ``torch.save`` wrote.
It is written under another name, synced and renamed; the last two are kept. It is read with ``weights_only``, hence runs no code.
"""

import hashlib
import io
import json
import os
import random
import re
import signal
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, Self

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from benchmarks.files import ABANDONED, to_disk
from benchmarks.spec import Cell

FORMAT = 4
KEPT = 2
STATE = re.compile(r"/state-[0-9]{8}\.pt$")


class StateError(Exception):
    """A state that can't be used; the message names the file and what is wrong with it."""


class Stop:
    """Notes the first SIGTERM, SIGINT or SIGHUP, so that a training can keep its state; a second one ends the process at once.

    Attributes:
        last: what is done even then: it removes temporary files.
    """

    signal: int | None = None
    before: Mapping[int, Any] = MappingProxyType({})
    last: Callable[[], None] = staticmethod(lambda: None)

    def __enter__(self) -> Self:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which is how nohup starts us
            self.before |= {signal.SIGHUP: signal.getsignal(signal.SIGHUP)}
        self.listen()
        return self

    def listen(self) -> None:
        """Take the signals; to be called again after a library (Ray's ``init``) has taken them for itself."""
        for number in self.before:
            signal.signal(number, self._note)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            self.last()
            signal.raise_signal(number)
        self.signal = number


@dataclass
class Progress:
    """Where a training is: the epoch it is in (from 0), batches of it that are done, and what has been measured so far."""

    epoch: int = 0
    batch: int = 0
    update: int = 0
    images: int = 0
    seconds: float = 0.0
    loss_sums: list[float] = field(default_factory=lambda: [0.0])  # one a process
    best_val: float = -1.0
    best: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)  # measured before the first epoch, and its predictions
    classes: dict[str, torch.Tensor] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)  # what it has run on, one after the other

    def on(self, device: torch.device) -> None:
        """Note what it goes on on."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        if device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
            name += ", deterministic"  # other algorithms, other bits
        if name not in self.devices[-1:]:
            self.devices.append(name)


class States:
    """The states of one seed of one cell, in a folder of their own.

    Args:
        address: folder for all seeds, a path or any address that fsspec knows, so that the machines of a cluster can share it.
    """

    def __init__(self, address: str, cell: Cell, seed: int) -> None:
        self.files, root = fsspec.core.url_to_fs(address)
        self.folder = f"{root.rstrip('/')}/{cell.hash}-{seed}"
        self.identity = {"format": FORMAT, "cell": cell.hash, "seed": seed}

    def run_id(self) -> str | None:
        """The MLflow run that the newest usable state belongs to."""
        newest = self._newest([], lambda content: None)
        return newest[0]["run_id"] if newest else None

    def load(
        self, check: Callable[[dict[str, Any]], None] = lambda content: None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest usable state, None if there is none, and why newer ones were refused.

        ``check`` raises what it likes at a content that the training could not take.
        """
        refused: list[str] = []
        newest = self._newest(refused, check)
        return newest[1] if newest else None, refused

    def save(self, content: dict[str, Any], run_id: str | None) -> None:
        """Write a state; the two newest are kept.

        Two trainings of one seed, by two stores, may share the folder: neither writes to the other's file.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        header = self.identity | {"run_id": run_id, "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()}
        self.files.makedirs(self.folder, exist_ok=True)
        for left in self.files.glob(f"{self.folder}/unfinished-*"):
            with suppress(OSError, NotImplementedError):  # the other's, just renamed; a place that tells no times
                if (datetime.now(UTC) - self.files.modified(left)).total_seconds() > ABANDONED:
                    self.files.rm(left)
        names = [name for name in self._names() if STATE.search(name)]
        number = int(names[-1].rsplit("-", 1)[1].removesuffix(".pt")) + 1 if names else 0
        temporary = f"{self.folder}/unfinished-{uuid.uuid4().hex}"
        with self.files.open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(buffer.getbuffer())
            if isinstance(self.files, LocalFileSystem):
                file.flush()
                os.fsync(file.fileno())
        self.files.mv(temporary, f"{self.folder}/state-{number:08d}.pt")
        if isinstance(self.files, LocalFileSystem):
            to_disk(Path(self.folder))
        for old in names[: 1 - KEPT]:
            with suppress(FileNotFoundError):
                self.files.rm(old, recursive=True)  # it may be a folder, which was refused

    def discard(self) -> None:
        """Remove the folder: the seed is finished."""
        if self.files.exists(self.folder):
            self.files.rm(self.folder, recursive=True)

    def _names(self) -> list[str]:
        return sorted(self.files.glob(f"{self.folder}/state-*.pt"))

    def _newest(
        self, refused: list[str], check: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        for name in reversed(self._names()):
            try:
                return self._read(name, check)
            except StateError as error:
                refused.append(str(error))
        return None

    def _read(self, name: str, check: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            line, _, body = self.files.cat_file(name).partition(b"\n")
        except OSError as error:
            raise StateError(f"{name} can't be read: {error}") from None
        try:
            header = json.loads(line)
            checksum, run_id = header["sha256"], header["run_id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StateError(f"{name} is not a state of a training") from None
        if not STATE.search(name) or not isinstance(run_id, str | None):
            raise StateError(f"{name} is not a state of a training")
        for key, ours in self.identity.items():
            if header.get(key) != ours:
                raise StateError(f"{name} has {key} {header.get(key)!r}, this training {ours!r}")
        if hashlib.sha256(body).hexdigest() != checksum:
            raise StateError(f"{name} is damaged: its SHA-256 is not the one it was written with")
        try:
            content = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a foreign pickle does: none of it is run
            raise StateError(
                f"{name} holds more than tensors and numbers, and is not read: {str(error).splitlines()[0]}"
            ) from None
        try:
            check(content)
        except Exception as error:  # whatever it stumbles over
            raise StateError(f"{name} does not fit this training: {error}") from None
        return header, content


def generators() -> dict[str, Any]:
    """The state of every random number generator that a training could draw from, as tensors and numbers."""
    numpy = dict(np.random.get_state(legacy=False))
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy | {"state": numpy["state"] | {"key": keys}},
        "python": random.getstate(),
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Put every generator where :func:`generators` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:  # without a GPU they wait in torch: a training goes on, though not to the last bit
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    random.setstate(state["python"])
