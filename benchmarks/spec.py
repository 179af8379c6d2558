"""Specs and profiles (TOML, strict) and how a table's row becomes a cell: config, seed-free, named by the hash of its content."""

import hashlib
import io
import itertools
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.neurons import KINDS

HERE = Path(__file__).parent
Start = Literal["exact", "algorithm1"]


class SpecError(Exception):
    """A spec, profile, table or row that does not exist or does not parse; the message says which and what would do."""


def _kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"unknown neuron {name!r}; known: {', '.join(KINDS)}")
    return name


NeuronKind = Annotated[str, AfterValidator(_kind)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(Strict):
    """How to train (the paper's appendix). ``epochs`` counts from scratch, or from the converted network when fine-tuning;
    ``epoch_images`` cuts an epoch to so many images (the next ones of a fresh shuffle each time); ``validation`` is the share of
    the training images that validates and does not train."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0, le=1000)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    epochs: int = Field(ge=1, le=100_000)
    epoch_images: int | None = Field(default=None, ge=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    warmup_epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    accumulate: int = Field(default=1, ge=1, le=65_536)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: bool = True
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} are more than the {self.epochs} epochs of the training"
            )
        return self


class NeuronSpec(Strict):
    """One activation: kind, levels L (``Tq`` for qcfs) and steps T; theta is 2/L and v(0) = 0 in direct training."""

    kind: NeuronKind
    levels: int = Field(default=1, ge=1, le=65_536)
    steps: int = Field(default=1, ge=1, le=1024)

    @model_validator(mode="after")
    def _consistent(self) -> "NeuronSpec":
        kind = KINDS[self.kind]
        if not kind.many_levels and self.levels != 1:
            raise ValueError(f"a {self.kind} neuron has one level, got levels = {self.levels}")
        if not kind.spiking and self.steps != 1:
            raise ValueError(f"{self.kind} is an ANN activation and has steps = 1, got {self.steps}")
        return self


class Row(Strict):
    """One row of a spec file.

    ``published`` are the lines (from 1) of the table's CSV that it stands beside; ``dataset`` is the paper's name, which a profile
    maps to the data that it has. ``stage`` picks the numbers of a run that the
    row reports: the network as trained; after reparameterisation; or the QCFS network converted to IF over ``steps`` steps.
    """

    id: str
    published: list[int] = []
    label: str
    dataset: str
    architecture: str
    neuron: NeuronKind
    levels: int = 1
    steps: int = 1
    stage: Literal["trained", "reparameterized", "converted"] = "trained"
    tq: int | None = Field(default=None, ge=1, le=65_536)
    start: Start | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Row":
        if (self.start is None) != (self.neuron != "lmht" or self.tq is None):
            raise ValueError(f"row {self.id}: an lmht row fine-tuned from a QCFS network needs both tq and start")
        if self.neuron == "qcfs" and self.tq is None:
            raise ValueError(f"row {self.id}: a qcfs row needs tq")
        NeuronSpec(kind=self.neuron, levels=self.levels, steps=self.steps)
        return self


class Spec(Strict):
    """One table: what it shows and its rows."""

    title: str
    note: str = ""
    published_columns: list[str] = []
    row: list[Row]


class RecipeBook(Strict):
    """A base recipe, what single networks change in it, and what single data sets (the paper's names) then do."""

    base: Recipe
    architecture: dict[str, dict[str, Any]] = {}
    dataset: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "RecipeBook":
        for architecture, dataset in itertools.product(["", *self.architecture], ["", *self.dataset]):
            self.of(architecture, dataset)
        return self

    def of(self, architecture: str, dataset: str) -> Recipe:
        changed = self.architecture.get(architecture, {}) | self.dataset.get(dataset, {})
        return Recipe(**(self.base.model_dump() | changed))


class Profile(Strict):
    """One way to run all tables: data sets or their stand-ins, network widths, recipes. ``devices`` share each training by DDP.

    Rows on a data set that ``datasets`` does not name are not run.
    """

    title: str
    datasets: dict[str, str]
    deviations: list[str] = []
    networks: dict[str, dict[str, Any]] = {}
    dataset_networks: dict[str, dict[str, Any]] = {}
    dataset_architecture: dict[str, str] = {}
    qcfs_scale: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    float64_checks: bool = True
    threads: int | None = Field(default=None, ge=1, le=1024)
    devices: int = Field(default=1, ge=1)
    backend: Literal["auto", "eager", "compiled", "triton"] = "auto"
    direct: RecipeBook
    ann: RecipeBook
    finetune: RecipeBook

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        for name, options in (self.networks | self.dataset_networks).items():
            width = options.get("width", 1)
            if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 64:
                raise ValueError(f"the width of {name} is a number above 0 and up to 64, got {width!r}")
        books = (self.direct.dataset, self.ann.dataset, self.finetune.dataset)
        for name in [name for some in (self.dataset_networks, self.dataset_architecture, *books) for name in some]:
            if name not in self.datasets:
                raise ValueError(f"{name!r} is none of the profile's data sets: {', '.join(self.datasets)}")
        return self

    def architecture(self, row: Row) -> str:
        """The network of a row: the paper's, or the one that the profile has on its data set."""
        return self.dataset_architecture.get(row.dataset, row.architecture)


def content_hash(config: dict[str, Any]) -> str:
    """The name of a cell: 16 hexadecimal digits of the SHA-256 of its config as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


class Cell(Strict):
    """Everything that decides a run's numbers but the seed. Two rows with equal content share one run."""

    dataset: str
    architecture: str
    network: dict[str, Any]
    neuron: NeuronSpec
    recipe: Recipe
    qcfs_scale: float
    float64_checks: bool
    threads: int | None
    devices: int = Field(ge=1)
    backend: str
    start: Start | None = None
    ann: "Cell | None" = None

    @model_validator(mode="after")
    def _consistent(self) -> "Cell":
        if self.recipe.batch_size % self.devices:
            raise ValueError(
                f"a batch of {self.recipe.batch_size} can't be shared by {self.devices} devices; take a divisor"
            )
        return self

    @cached_property
    def hash(self) -> str:
        return content_hash(self.model_dump(mode="json"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("hash", None)  # pydantic copies what is cached
        return copy

    @property
    def name(self) -> str:
        neuron, kind = self.neuron, KINDS[self.neuron.kind]
        shape = f"{neuron.kind.upper()} L={neuron.levels} T={neuron.steps}"
        if not kind.spiking:
            shape = kind.title + f" Tq={neuron.levels}" * kind.many_levels
        origin = f" from QCFS Tq={self.ann.neuron.levels}, {self.start}" if self.ann else ""
        return f"{self.architecture} {shape}{origin} on {self.dataset}"


_Model = TypeVar("_Model", bound=BaseModel)


def read(path: Path, kind: type[_Model]) -> _Model:
    """A TOML file as a strict model, or a SpecError that names the file and the unknown or wrong key."""
    try:
        return _parsed(path.read_text(encoding="utf-8"), kind)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".lstrip(": ") for one in error.errors()]
        raise SpecError(f"{path.name} is not valid: {' '.join('; '.join(found).split())}") from error
    except (ValueError, RecursionError, OSError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise SpecError(f"{path.name} is not valid: {error}") from error


@lru_cache(64)  # by the text: a report asks for each file a hundred times
def _parsed(text: str, kind: type[_Model]) -> _Model:
    return kind(**tomllib.loads(text))


def profiles() -> list[str]:
    return sorted(path.stem for path in (HERE / "profiles").glob("*.toml"))


def load_profile(name: str) -> Profile:
    if name not in profiles():
        raise SpecError(f"unknown profile {name!r}; known: {', '.join(profiles())}")
    profile = read(HERE / "profiles" / f"{name}.toml", Profile)
    rows = [row for table in tables() for row in load_spec(table).row]
    named = dict.fromkeys(row.dataset for row in rows)
    if unknown := [dataset for dataset in profile.datasets if dataset not in named]:
        raise SpecError(f"{name}.toml: no table has a row on {unknown[0]!r}; there are rows on {', '.join(named)}")
    run = dict.fromkeys(profile.architecture(row) for row in rows if row.dataset in profile.datasets)
    changed = [profile.networks, profile.direct.architecture, profile.ann.architecture, profile.finetune.architecture]
    if unknown := [network for some in changed for network in some if network not in run]:
        raise SpecError(f"{name}.toml: none of its rows has a network {unknown[0]!r}; they have {', '.join(run)}")
    return profile


def tables() -> list[str]:
    return sorted(path.stem for path in (HERE / "specs").glob("table*.toml"))


def published(table: str) -> pd.DataFrame:
    """The paper's numbers as printed, one line a row, text kept as it is; blank where the paper prints a dash. A table of our own
    has none."""
    path = HERE / "published" / f"{table}.csv"
    return _frame(path.read_text(encoding="utf-8")).copy() if path.exists() else pd.DataFrame()


@lru_cache(64)
def _frame(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def load_spec(table: str) -> Spec:
    if table not in tables():
        raise SpecError(f"unknown table {table!r}; known: {', '.join(tables())}")
    spec = read(HERE / "specs" / f"{table}.toml", Spec)
    ids = [row.id for row in spec.row]
    if doubled := sorted({i for i in ids if ids.count(i) > 1}):
        raise SpecError(f"{table}.toml: row id {doubled[0]!r} stands twice")
    lines = len(published(table))
    for row in spec.row:
        if row.published and not lines:
            raise SpecError(f"{table}.toml, row {row.id}: published/{table}.csv, whose lines it names, is not there")
        if unknown := [line for line in row.published if not 1 <= line <= lines]:
            raise SpecError(f"{table}.toml, row {row.id}: the paper's table has lines 1 to {lines}, not {unknown[0]}")
    return spec


def select_rows(table: str, spec: Spec, wanted: list[str] | None) -> list[Row]:
    """The rows with the wanted ids, all for None."""
    known = {row.id: row for row in spec.row}
    if unknown := [i for i in wanted or [] if i not in known]:
        raise SpecError(f"{table} has no row {unknown[0]!r}; its rows: {', '.join(known)}")
    return [known[i] for i in wanted] if wanted is not None else spec.row


def no_data(dataset: str) -> str:
    """Why a row is not run where its data are missing from the profile."""
    return f"data: the profile names no data set for {dataset!r}"


def resolve(row: Row, profile: Profile) -> Cell:
    """The cell that a row's numbers come from.

    Raises:
        SpecError: the profile does not name the row's data set, or its devices can't share a batch.
    """
    if row.dataset not in profile.datasets:
        raise SpecError(f"row {row.id}: {no_data(row.dataset)}")
    if row.stage == "converted" or row.neuron == "qcfs":
        return _cell(row, profile, NeuronSpec(kind="qcfs", levels=row.tq or 1), profile.ann)
    neuron = NeuronSpec(kind=row.neuron, levels=row.levels, steps=row.steps)
    if row.tq is None:
        return _cell(row, profile, neuron, profile.ann if row.neuron == "relu" else profile.direct)
    ann = _cell(row, profile, NeuronSpec(kind="qcfs", levels=row.tq), profile.ann)
    return _cell(row, profile, neuron, profile.finetune, start=row.start, ann=ann)


def _cell(row: Row, profile: Profile, neuron: NeuronSpec, book: RecipeBook, **upstream: Any) -> Cell:
    dataset = profile.datasets[row.dataset]
    architecture = profile.architecture(row)
    options = profile.networks.get(architecture, {}) | profile.dataset_networks.get(row.dataset, {})
    try:
        return Cell(
            dataset=dataset,
            architecture=architecture,
            network=options,
            neuron=neuron,
            recipe=book.of(architecture, row.dataset),
            qcfs_scale=profile.qcfs_scale,
            float64_checks=profile.float64_checks,
            threads=profile.threads,
            devices=profile.devices,
            backend=profile.backend,
            **upstream,
        )
    except ValidationError as error:
        raise SpecError(f"row {row.id}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
