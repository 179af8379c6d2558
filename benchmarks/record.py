"""What a run says of itself: its progress, its result, and the record that is kept of it, a line of ``runs.jsonl``.

Tables, figures, verdicts and pages are functions of records alone. The file holds one JSON object a line: the finished run of every
seed, and the latest failure of a seed that has not finished. Keys are sorted, lines are sorted by table, cell and seed, floats are
written by ``repr``: the same records give the same bytes.
"""

import base64
import bz2
import itertools
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from benchmarks.spec import Cell, Strict, content_hash

FILE = "runs.jsonl"
NAME = re.compile(r"[\w./ :-]{1,240}")  # as MLflow takes it, behind `epoch/` or `mean/`
COUNTED_IMAGES = 1024  # SOPs and reparameterisation in float64 are measured on the first test images, at most this many


class RecordError(Exception):
    """A file of records that is missing or damaged; the message names the line and says what to do."""


@dataclass(frozen=True)
class Epoch:
    """Progress after one epoch; accuracies in percent, loss in nats."""

    epoch: int
    epochs: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What was measured on a trained network.

    Attributes:
        metrics: accuracies and shares in percent, SOPs and MACs in 1e9 and energy in mJ an image.
        labels: the test set's, [N].
        predictions: classes [N], by the metric that is their accuracy.
        tgim: of every LM-HT layer, by its name: ``omega`` [T][T] and ``leak``.
        version: of the code that measured (:data:`benchmarks.run.evaluate.VERSION`).
        uncounted: operations of the network that are in no count of operations.
    """

    metrics: dict[str, float]
    labels: np.ndarray
    predictions: dict[str, np.ndarray]
    tgim: dict[str, dict[str, Any]]
    version: int
    uncounted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """Final metrics, the checkpoint's path, the data (name, digest, source), what was measured besides metrics, and on what."""

    metrics: dict[str, float]
    checkpoint: Path
    data: dict[str, str]
    measured: Measured = field(default_factory=lambda: Measured({}, np.zeros(0, np.int64), {}, {}, 0))
    device: str = ""  # the devices that the training ran on, one after the other


class Evaluation(Strict):
    """By which version of the code a checkpoint was measured, and where."""

    version: int
    commit: str
    dirty: str
    cpu: str


class Record(Strict):
    """One run. ``config`` is the whole cell, ``cell`` the hash of it.

    Attributes:
        provenance: commit, dirty flag, versions, machine, kind of processor, device.
        history: per-epoch metrics, by name.
        predictions: names and classes of all test images, packed (:func:`pack`).
        wall_s: seconds from the run's start to its end.
    """

    table: str
    title: str
    cell: str
    seed: int = Field(ge=0, lt=10**18)
    config: dict[str, Any]
    provenance: dict[str, str]
    status: Literal["finished", "failed"]
    reason: str = ""
    data: dict[str, str] = Field(default={})
    history: dict[str, list[float]] = Field(default={})
    metrics: dict[str, float] = Field(default={})
    predictions: dict[str, Any] = Field(default={})
    tgim: dict[str, dict[str, Any]] = Field(default={})
    checkpoint_sha256: str = ""
    wall_s: float = 0.0
    evaluation: Evaluation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Record":
        if self.cell != content_hash(self.config):
            raise ValueError(f"cell {self.cell} is not the hash of its config, {content_hash(self.config)}")
        whole = "test/final" in self.metrics and "digest" in self.data and self.evaluation and self.checkpoint_sha256
        if self.status == "finished" and not whole:
            raise ValueError("a finished run has test/final, an evaluation, and the digests of its data and checkpoint")
        for name in (*self.metrics, *self.history, *self.provenance):
            if not NAME.fullmatch(name) or posixpath.normpath(name) != name or name[0] in "./":
                raise ValueError(f"{name[:60]!r} is no name of a metric or tag: MLflow would not take it")
        for layer, tgim in self.tgim.items():
            omega: Any = tgim.get("omega")
            square = isinstance(omega, list) and all(isinstance(row, list) and len(row) == len(omega) for row in omega)
            numbers = [tgim.get("leak"), *itertools.chain(*omega)] if square else [None]
            if tgim.keys() != {"omega", "leak"} or not all(type(one) in (int, float) for one in numbers):
                raise ValueError(f"tgim {layer} is not omega, as many rows of numbers as columns, and the number leak")
        return self

    @property
    def key(self) -> tuple[str, int]:
        return self.cell, self.seed

    @property
    def trained_on(self) -> str:
        """The kind of processor, and the devices if they are others."""
        cpu, device = self.provenance.get("cpu", "an unnamed kind"), self.provenance.get("device", "cpu")
        return cpu if device in ("", "cpu") else f"{device} ({cpu})"

    def evaluated_after(self, other: "Record") -> bool:
        """Whether a newer version of the evaluation measured the same training."""
        if not self.evaluation or not other.evaluation or self.checkpoint_sha256 != other.checkpoint_sha256:
            return False
        return self.evaluation.version > other.evaluation.version

    @cached_property
    def classes(self) -> dict[str, np.ndarray]:
        """``labels`` and all predictions, [N] each."""
        return unpack(self.predictions) if self.predictions else {}

    def per_image(self, metric: str) -> np.ndarray | None:
        """What a metric in percent is the mean of, one value (0 or 100) a test image; None for any other metric."""
        found = self.classes
        pairs = {
            "before/agree_pct": ("before/accuracy", "ann/accuracy"),
            "reparam/changed_pct": ("reparam/accuracy", "test/final"),
        }
        one, other = pairs.get(metric, (metric, "labels"))
        if one not in found or other not in found:
            return None
        same = found[one] == found[other]
        return 100.0 * (~same if metric.endswith("changed_pct") else same)

    def line(self) -> str:
        """The record as a line of the file."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=True)


def pack(labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Labels and predictions [N] as text: each row minus the one before it (mostly 0), bzip2, base64.

    bzip2, since all its versions give the same bytes; those of zlib do not.
    """
    names = ["labels", *predictions]
    rows = np.stack([labels, *predictions.values()])
    kind = np.uint8 if rows.max(initial=0) < 256 else np.uint16
    steps = np.diff(rows.astype(kind), axis=0, prepend=kind(0))  # modulo 256 or 65536
    raw = steps.astype(np.dtype(kind).newbyteorder("<")).tobytes()
    return {"names": names, "bits": 8 * rows.astype(kind).itemsize, "bz2": base64.b64encode(bz2.compress(raw)).decode()}


def unpack(packed: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: nothing that it packs.
    """
    try:
        kind = np.dtype(f"<u{packed['bits'] // 8}")
        steps = np.frombuffer(bz2.decompress(base64.b64decode(packed["bz2"])), kind).reshape(len(packed["names"]), -1)
        return dict(zip(packed["names"], steps.cumsum(axis=0, dtype=kind), strict=True))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"predictions that can't be unpacked ({error})") from error


def parse(text: str, where: str) -> Record:
    """One line's record.

    Raises:
        RecordError: the line does not hold one, or its accuracies are not those of its predictions.
    """
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair can't be written again
        record = Record(**content)
        Cell(**record.config)
        if not all(record.history.values()) or (record.status == "finished" and "test" not in record.history):
            raise ValueError("history lacks epochs: a finished run has test, and no curve is empty")
        for name in record.classes.keys() & record.metrics.keys():
            images = record.per_image(name)
            if images is None or not math.isclose(images.mean(), record.metrics[name], abs_tol=1e-9):
                raise ValueError(f"{name} = {record.metrics[name]} is not what its predictions give")
        return record
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip() if first else str(error)
        raise RecordError(f"{where} is not a record: {why}; restore the file, or export it again") from error


def loads(text: str, where: str) -> list[Record]:
    """The records of a file's text.

    Raises:
        RecordError: a line is damaged, or two lines are of the same seed.
    """
    found: dict[tuple[str, int], Record] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):  # no other line break
        record = parse(line, f"{where}, line {number}")
        if record.key in found:
            raise RecordError(f"{where}, line {number}: seed {record.seed} of cell {record.cell} stands twice")
        found[record.key] = record
    return list(found.values())


def load(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        RecordError: it is missing or damaged.
    """
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise RecordError(f"no record at {path}; `python -m benchmarks export` writes one") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: {error}; restore the file") from error
    except OSError as error:
        raise RecordError(f"{path} can't be read: {error.strerror}") from error


def dumps(records: Iterable[Record]) -> str:
    """The text of a file."""
    return "".join(record.line() + "\n" for record in sorted(records, key=lambda r: (r.table, r.cell, r.seed)))


def refuse_loss(new: Iterable[Record], path: Path) -> None:
    """Refuse to write these records over a file that holds runs which they do not: lost, another training of the same seed, or an
    older evaluation of it.

    Raises:
        RecordError: it does, or the file can't be read.
    """
    ours = {one.key: one for one in new if one.status == "finished"}
    there = [one for one in load(path) if one.status == "finished"] if path.exists() else []
    remedy = f"`python -m benchmarks import {path}`, with the same --profile, takes them in first"
    if lost := [one for one in there if one.key not in ours]:
        raise RecordError(f"{path} holds {len(lost)} finished runs that the store does not; {remedy}")
    if newer := [one for one in there if one.evaluated_after(ours[one.key])]:
        raise RecordError(f"{path} holds newer evaluations of {len(newer)} runs than the store; {remedy}")
    if other := [one for one in there if one.checkpoint_sha256 != ours[one.key].checkpoint_sha256]:
        raise RecordError(
            f"{path} holds another training of {len(other)} of these runs ({other[0].title}, seed {other[0].seed}: another "
            "checkpoint); write to another file, or move that one away if these shall take its place"
        )


# Two records of the same seed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A run and the committed one.

    Attributes:
        verdict: ``identical`` (checkpoint, history, metrics, predictions, T-GIMs, bit for bit), ``differs``, or ``not committed``.
        points: by how much the test accuracy differs, ours minus theirs.
        kinds: the two kinds of processor, with the devices if they are others; ours first.
        seeds: the test accuracies of all committed seeds of the cell.
    """

    ours: Record
    verdict: Literal["identical", "differs", "not committed"]
    what: str = ""
    points: float = 0.0
    kinds: tuple[str, str] = ("", "")
    seeds: tuple[float, ...] = ()

    @property
    def expected(self) -> tuple[float, float] | None:
        """Where a further seed's accuracy falls in 95 of 100 cases, by the committed ones (t distribution); None for one seed.

        It is asked of a run on another kind of processor, whose bits are not expected to be the committed ones.
        """
        ours, theirs = self.kinds
        if self.verdict != "differs" or ours == theirs or len(self.seeds) < 2:
            return None
        from scipy import stats  # ships no types, and takes a moment

        n, mean = len(self.seeds), float(np.mean(self.seeds))
        half = float(stats.t.ppf(0.975, n - 1) * np.std(self.seeds, ddof=1) * math.sqrt(1 + 1 / n))
        return mean - half, mean + half

    @property
    def within(self) -> bool | None:
        """Whether ours falls there; None where that can't be said."""
        if self.expected is None:
            return None
        low, high = self.expected
        return low <= self.ours.metrics["test/final"] <= high

    @property
    def text(self) -> str:
        """The verdict as people read it."""
        if self.verdict != "differs":
            return self.verdict
        ours, theirs = self.kinds
        kind = f"on {ours} as the committed one" if ours == theirs else f"on {ours}, the committed one on {theirs}"
        text = f"differs in {self.what}; test accuracy {self.points:+.2f} points; {kind}"
        if self.expected is None:
            return text
        low, high = self.expected
        where = "within" if self.within else "outside"
        return f"{text}: {where} the 95 % interval of a seed beside the {len(self.seeds)} committed, {low:.2f} to {high:.2f} %"


def compare(ours: Iterable[Record], theirs: Iterable[Record]) -> list[Comparison]:
    """Each finished run of ours with the committed run of the same cell and seed."""
    known = {record.key: record for record in theirs if record.status == "finished"}
    seeds: dict[str, list[float]] = {}
    for record in known.values():
        seeds.setdefault(record.cell, []).append(record.metrics["test/final"])
    return [
        _compare(one, known.get(one.key), tuple(seeds.get(one.cell, ())))
        for one in sorted(ours, key=lambda r: (r.table, r.cell, r.seed))
        if one.status == "finished"
    ]


def _compare(one: Record, other: Record | None, seeds: tuple[float, ...]) -> Comparison:
    if other is None:
        return Comparison(one, "not committed")

    def curves(record: Record) -> dict[str, list[float]]:
        return {name: values for name, values in record.history.items() if name != "images_per_s"}

    common = one.metrics.keys() & other.metrics.keys()  # an older evaluation may lack some
    differing = [name for name in sorted(common) if one.metrics[name] != other.metrics[name]]
    shared = one.classes.keys() & other.classes.keys()
    lacking = "" if "test/final" in shared else " (missing)"
    unlike = [name for name in shared if not np.array_equal(one.classes[name], other.classes[name])]
    parts = {
        "checkpoint": one.checkpoint_sha256 != other.checkpoint_sha256,
        "data": one.data.get("digest") != other.data.get("digest"),
        "history": curves(one) != curves(other),
        f"predictions{lacking}": bool(lacking or unlike),
        "T-GIMs": one.tgim != other.tgim,
        f"{len(differing)} of {len(common)} metrics": bool(differing),
    }
    what = ", ".join(name for name, different in parts.items() if different)
    points = one.metrics.get("test/final", 0.0) - other.metrics.get("test/final", 0.0)
    verdict: Literal["identical", "differs"] = "differs" if what else "identical"
    return Comparison(one, verdict, what, points, (one.trained_on, other.trained_on), seeds)


def in_one_line(found: Sequence[Comparison]) -> str:
    """``62 of 62 runs identical to the committed ones, bit for bit``; else what differs, by how much, on which processor."""
    against = [c for c in found if c.verdict != "not committed"]
    same = sum(c.verdict == "identical" for c in against)
    unknown = len(found) - len(against)
    line = f"{same} of {len(against)} runs identical to the committed ones, bit for bit"
    if differing := [c for c in against if c.verdict == "differs"]:
        most = max(differing, key=lambda c: abs(c.points))
        pairs = sorted({c.kinds for c in differing})
        kinds = "; ".join(f"here {a}, committed {b}" if a != b else f"both on {a}" for a, b in pairs)
        line += f"; {len(differing)} differ, in test accuracy by at most {abs(most.points):.2f} points ({kinds})"
        if asked := [c for c in differing if c.within is not None]:
            inside = sum(bool(c.within) for c in asked)
            line += f"; {inside} of {len(asked)} on another kind within their seeds' interval"
    return line + (f"; {unknown} runs have no committed counterpart" if unknown else "")
