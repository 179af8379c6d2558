"""``python -m benchmarks list | data | plan | run TABLE... | evaluate | report | verify | export | import``."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from benchmarks import spec
from benchmarks.record import Epoch, Record, RecordError, Result
from benchmarks.run.schedule import STATE_DIR, Elsewhere, Job, Note, check, jobs_of
from benchmarks.run.schedule import run as run_jobs
from benchmarks.run.state import Stop
from benchmarks.run.together import started
from benchmarks.run.train import StoppedError, TrainingError
from benchmarks.run.workers import follow
from benchmarks.store import Store, StoreError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(markup=False)  # names, paths and what libraries say may hold brackets
RESULTS = Path("results")  # tracked: only --publish and export write there
ProfileOption = Annotated[str, typer.Option(help=" | ".join(spec.profiles()))]
TablesArgument = Annotated[list[str] | None, typer.Argument(help="tables; default: all")]


@contextmanager
def in_order() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end as an error would: temporary files go, runs are closed. A second one ends it at once."""
    got: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        got.append(number)
        raise SystemExit(128 + number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]  # as of nohup
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        restore()
        for number in got:
            say(f"stopped by {signal.Signals(number).name}", where=Console(stderr=True))


@app.callback()
def every(context: typer.Context) -> None:
    if context.invoked_subcommand != "run":  # whose trainings keep their state first
        context.with_resource(in_order())


def fail(error: Exception) -> typer.Exit:
    say(str(error), "error:", "red", Console(stderr=True))
    return typer.Exit(1)


def show_rows(store: Store, profile: spec.Profile) -> None:
    """Each table's experiment shows all rows that have runs, also those whose run another table's experiment holds."""
    try:
        store.show_rows(
            {
                table: [spec.resolve(row, profile) for row in rows if row.dataset in profile.datasets]
                for table, rows in selection(None).items()
            }
        )
    except StoreError as error:
        raise fail(error) from error


def say(text: str, mark: str = "", colour: str = "yellow", where: Console = console) -> None:
    """Print a line from anywhere, as it is, behind a coloured mark."""
    where.print(Text.assemble((mark, colour), " " * bool(mark), text), highlight=False, soft_wrap=True)


def selection(tables: list[str] | None, rows: str | None = None) -> dict[str, list[spec.Row]]:
    """Rows of the named tables, or of all."""
    names = tables or spec.tables()
    if rows is not None and len(names) != 1:
        raise spec.SpecError("--rows needs exactly one table, as in: run table1 --rows 1,3")
    wanted = [one.strip() for one in rows.split(",")] if rows is not None else None
    return {name: spec.select_rows(name, spec.load_spec(name), wanted) for name in names}


def missing_data(rows: dict[str, list[spec.Row]], profile: spec.Profile) -> list[str]:
    """One line for each data set of the rows that the profile does not name."""
    lacking = [row.dataset for some in rows.values() for row in some if row.dataset not in profile.datasets]
    return [f"({lacking.count(name)} rows): {spec.no_data(name)}" for name in dict.fromkeys(lacking)]


@app.command("list")
def list_(tables: TablesArgument = None) -> None:
    """Tables, their rows, and the ids that --rows takes."""
    try:
        for name, rows in selection(tables).items():
            view = Table(
                "row", "label", "architecture", "data set", title=spec.load_spec(name).title, title_justify="left"
            )
            for row in rows:
                view.add_row(row.id, row.label, row.architecture, row.dataset)
            console.print(view)
    except spec.SpecError as error:
        raise fail(error) from error


@app.command()
def run(
    tables: TablesArgument = None,
    profile: ProfileOption = "digits",
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="seeds 42, 43, ...")] = 1,
    device: Annotated[str, typer.Option(help="cpu | cuda | auto")] = "auto",
    rows: Annotated[str | None, typer.Option(help="row ids of one table, comma-separated")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="seeds trained at once; default: CPU cores, 1 on a GPU (more share it), all that a cluster has room for",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="spread seeds over the Ray cluster at this address; local: over this machine"
        ),
    ] = None,
    data_root: Annotated[Path, typer.Option(help="where data sets lie")] = Path("data"),
    data_workers: Annotated[int, typer.Option(min=0, help="processes that load and augment training images")] = 0,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="have torch give the same bits in every run on a GPU, too; on a CPU it always does"
        ),
    ] = False,
    state_dir: Annotated[
        str, typer.Option(help="where unfinished trainings keep their state; any fsspec address")
    ] = STATE_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="of latency: tiny sizes, to try the harness")] = False,
) -> None:
    """Train and evaluate what the store does not hold yet; finished seeds are never trained again. Or: run latency."""
    quiet()
    if tables == ["latency"]:
        run_latency(device, quick)
        return
    try:
        if "latency" in (tables or []):
            raise spec.SpecError("latency is measured alone: `python -m benchmarks run latency`")
        chosen = spec.load_profile(profile)
        if device != "cuda" or ray in (None, "local"):  # other machines' GPUs can't be asked from here
            device = resolve_device(device)
        wanted = selection(tables, rows)
        for reason in missing_data(wanted, chosen):
            say(reason, "not run")
        work = jobs_of(wanted, chosen, seeds)
        if not work:
            raise spec.SpecError(f"profile {profile} has the data of none of these rows")
        check(work)
        parallel = jobs or at_once(device, chosen.devices, ray)
        parallel = min(parallel, len(work)) if parallel else None
        if (ray or parallel != 1) and chosen.devices > 1:
            raise spec.SpecError(
                f"--ray, --jobs above 1: with devices = {chosen.devices} a profile trains one seed at a time; "
                "give the command again on other machines, by the same store, to train more at once"
            )
        with Stop() as stop, started(chosen.devices, device) as group:
            if group and group.rank:
                follow(group, stop)
                return
            store = Store(profile)
            with Bars(len(work)) as bars:
                failed = run_jobs(
                    work,
                    store,
                    parallel=parallel,
                    device=device,
                    progress=bars.show,
                    root=data_root.resolve(),
                    data_workers=data_workers,
                    deterministic=deterministic,
                    state_dir=state_dir,
                    stop=stop,
                    group=group,
                    ray=ray,
                )
    except (spec.SpecError, StoreError, TrainingError) as error:
        raise fail(error) from error
    except StoppedError as stopped:
        say(f"{stopped}; the same command goes on from there")
        raise typer.Exit(128 + (stop.signal or 0)) from None
    for reason in sorted(set(failed.values())):
        cells = sum(r == reason for r in failed.values())
        say(f"({cells} cells): {reason}", "not run")
    show_rows(store, chosen)
    compare_with_committed(profile, store, {job.key for job in work})
    if failed:
        raise typer.Exit(1)


def at_once(device: str, devices: int, ray: str | None) -> int | None:
    """Seeds trained at once if nobody says; None: all that a cluster has room for."""
    import torch

    if ray and ray != "local":
        return None
    if devices > 1 or (device != "cpu" and not ray):
        return 1
    return torch.cuda.device_count() if device != "cpu" else len(os.sched_getaffinity(0))


def run_latency(device: str, quick: bool) -> None:
    from benchmarks.latency import record

    try:
        code = record.run(Store("latency"), resolve_device(device), quick)
    except (spec.SpecError, StoreError) as error:
        raise fail(error) from error
    if code:
        raise typer.Exit(code)


@app.command()
def plan(
    tables: TablesArgument = None,
    profile: ProfileOption = "paper",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="what the GPU sustains on these networks, in 1e12 FLOP/s")
    ] = 40.0,
    measure: Annotated[bool, typer.Option("--measure", help="time some batches of each cell on this machine")] = False,
    device: Annotated[str, typer.Option(help="cpu | cuda | auto; of --measure")] = "auto",
) -> None:
    """What a profile would cost: images, MACs an image, GPU-hours and disk. Nothing is run, but a few batches to --measure."""
    from benchmarks.run import plan as costs

    try:
        wanted, chosen = selection(tables), spec.load_profile(profile)
        work = jobs_of(wanted, chosen, seeds)
        device = resolve_device(device) if measure else device
    except spec.SpecError as error:
        raise fail(error) from error
    frame = costs.plan(work, tflops)
    at_once, unit = 1, "GPU-hours"
    if measure:
        unit = "hours"
        at_once = 1 if device != "cpu" else len(os.sched_getaffinity(0))
        try:
            frame["hours"] = costs.hours(work, at_once, device)
        except TrainingError as error:
            raise fail(error) from error
    view = Table("table", "cell", "seeds", "training images", "GMACs an image", unit, title=f"profile {profile}")
    for (table, cell), lines in frame.groupby(["table", "cell"], sort=False):
        first = lines.iloc[0]
        hours = lines["hours"].sum()
        view.add_row(table, cell, str(len(lines)), f"{first['images']:,}", f"{first['macs_g']:.3g}", f"{hours:.3g}")
    console.print(view)
    for reason in missing_data(wanted, chosen):
        say(f"not in the plan {reason}")
    total = f"{frame['hours'].sum():,.1f} GPU-hours at {tflops:g} TFLOP/s sustained (an assumption: change it with --tflops)"
    if measure:
        total = f"{frame['hours'].sum() / at_once:,.1f} hours here, {at_once} trainings at once (measured)"
    console.print(
        f"{len(frame)} trainings, {frame['images'].sum():,} training images, {total}; disk: {costs.disk_gb(work):,.1f} GB of data, "
        f"{frame['checkpoint_mb'].sum() / 1000:,.1f} GB of checkpoints",
        highlight=False,
        soft_wrap=True,
    )


def resolve_device(device: str) -> str:
    import torch

    if device not in ("cpu", "cuda", "auto"):
        raise spec.SpecError(f"unknown device {device!r}; known: cpu, cuda, auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise spec.SpecError("device cuda: torch sees no CUDA GPU here; use --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


@app.command()
def report(
    what: Annotated[str, typer.Argument(help="tables | latency")] = "tables",
    profile: ProfileOption = "digits",
    out: Annotated[Path, typer.Option(help="folder that gets one folder a profile")] = Path("out"),
    publish: Annotated[
        bool, typer.Option("--publish", help="renew the tracked results/, and README.md's block")
    ] = False,
    records: Annotated[Path | None, typer.Option(help="a file of records to report on, instead of the store")] = None,
) -> None:
    """Write tables, figures, verdicts and report.html from records alone; or the latency tables. Compare with those committed."""
    quiet()
    from benchmarks import files, record
    from benchmarks.latency import tables as latency
    from benchmarks.report import page
    from benchmarks.report.tables import Results

    if what not in ("tables", "latency"):
        raise fail(spec.SpecError(f"unknown report {what!r}; known: tables, latency"))
    out = RESULTS if publish else out
    readme = Path("README.md") if publish else None
    try:
        if what == "latency":
            with files.together():
                latency.write(Store("latency"), out)
        else:
            chosen = spec.load_profile(profile)
            ours = record.load(records) if records else Store(profile).records()
            if records:
                of_profile(ours, chosen, profile, records)
            if publish:
                record.refuse_loss(ours, record_of(profile, None))
            if not any(one.status == "finished" for one in ours):
                say(f"profile {profile} has no finished run: its tables show what the paper says")
            committed = {name: record_of(name, None) for name in spec.profiles() if name != profile}
            others = [Results.of(name, record.load(path)) for name, path in committed.items() if path.exists()]
            one = Results.of(profile, ours)
            with files.together():
                page.write(one, out, readme, others, links=publish)
                for other in others if publish else []:  # their pages show this one's verdicts and Table 4, too
                    page.write(other, out, None, [one, *(third for third in others if third is not other)], links=True)
            if not records:
                Store(profile).log_report(out / profile, out / "figures")
                compare_with_committed(profile, Store(profile))
    except (spec.SpecError, StoreError, RecordError, OSError) as error:
        raise fail(error) from error
    say(f"written: {out / ('latency-*' if what == 'latency' else profile)}")


def compare_with_committed(profile: str, store: Store, keys: set[tuple[str, int]] | None = None) -> None:
    """Say how the runs trained here (of these cells and seeds) compare to those committed: what differs, then one line of all."""
    from benchmarks import record

    path = record_of(profile, None)
    if not path.exists():
        say(f"not compared: no record of runs is committed for profile {profile} ({path})")
        return
    try:
        ours = [one for one in store.records(imported=False) if keys is None or one.key in keys]
        frame = store.seeds()
        found = record.compare(ours, record.load(path))
    except (StoreError, RecordError) as error:
        raise fail(error) from error
    for one in found:
        if one.verdict == "differs":
            say(f"{one.ours.title}, seed {one.ours.seed}: {one.text}")
    say(record.in_one_line(found))
    held = {(line.cell, line.seed) for line in frame.itertuples()} if len(frame) else set()
    if imported := len((held if keys is None else held & keys) - {one.ours.key for one in found}):
        say(
            f"{imported} runs were imported, not trained here: in a store without them (MLFLOW_TRACKING_URI) they would be"
        )


@app.command()
def verify(
    profile: ProfileOption = "digits",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="judge both sides on the first so many of the claims' seeds alone")
    ] = None,
) -> None:
    """Judge the runs trained here against the committed record; exit 1 if a verdict flipped or anything committed was not run."""
    quiet()
    from benchmarks import record
    from benchmarks.report import claims
    from benchmarks.report.verify import verify as judged

    try:
        spec.load_profile(profile)  # that there is one
        rules = claims.load()
        wanted = rules.seeds[:seeds]
        committed = [one for one in record.load(record_of(profile, None)) if one.seed in wanted]
        if not any(one.status == "finished" for one in committed):
            raise RecordError(f"{record_of(profile, None)} holds no finished run to verify")
        fresh = [one for one in Store(profile).records(imported=False) if one.seed in wanted]
        found = judged(profile, fresh, committed, rules)
    except (spec.SpecError, StoreError, RecordError) as error:
        raise fail(error) from error
    view = Table("claim", "parts", "", title=f"Claims on profile {profile}", title_justify="left")
    for claim in rules.claim:
        view.add_row(claim.id, found.tally(claim.id), claim.title)
    console.print(view)
    for part in found.parts:
        if part.outcome in ("flipped", "not run"):
            verdicts = f"{part.committed.said} -> {part.fresh.said}" + f": {part.fresh.reason}" * bool(
                part.fresh.reason
            )
            say(f"{part.outcome}: {part.claim}: {part.committed.says}: {verdicts}")
    say(record.in_one_line(found.runs))
    if found.missing:
        say(
            f"not run: {len(found.missing)} of the committed runs were not trained in this store (an import is no training)"
        )
    if not found.confirmed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    profile: ProfileOption = "digits",
    device: Annotated[str, typer.Option(help="cpu | cuda | auto")] = "auto",
    data_root: Annotated[Path, typer.Option(help="where data sets lie")] = Path("data"),
    every: Annotated[
        bool, typer.Option("--all", help="also what this version of the evaluation measured already")
    ] = False,
) -> None:
    """Measure the stored checkpoints again by today's code, without training; exit 1 if one could not be."""
    quiet()
    import tempfile

    from benchmarks.data import DataError
    from benchmarks.run.again import again
    from benchmarks.run.evaluate import VERSION
    from benchmarks.store import CheckpointError, provenance

    try:
        spec.load_profile(profile)  # that there is one
        device, store = resolve_device(device), Store(profile)
        held, where = store.held(), {key: provenance()[key] for key in ("commit", "dirty", "cpu")}
        runs = {key: run_id for key, (run_id, _) in held.items()}
        finished = [one for _, one in held.values() if one.status == "finished"]
        old = [one for one in finished if every or not one.evaluation or one.evaluation.version != VERSION]
        failed = 0
        for one in sorted(old, key=lambda record: record.key):
            ann = spec.Cell(**one.config).ann
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    paths = [Path(scratch) / name for name in ("mine", "ann")]
                    for path in paths:
                        path.mkdir()
                    mine = store.checkpoint(runs[one.key], paths[0])
                    its_ann = store.checkpoint(runs[ann.hash, one.seed], paths[1]) if ann else None
                    fresh = again(one, mine, its_ann, root=data_root.resolve(), device=device, where=where)
                store.renew(runs[one.key], fresh)
            except (CheckpointError, DataError, KeyError) as error:
                failed += 1
                why = "its quantised ANN is not in the store" if isinstance(error, KeyError) else str(error)
                say(f"not evaluated: {one.title}, seed {one.seed}: {why}")
    except (spec.SpecError, StoreError, RecordError) as error:
        raise fail(error) from error
    say(
        f"{len(old) - failed} of {len(finished)} runs evaluated by version {VERSION}, {len(finished) - len(old)} were before"
    )
    if failed:
        raise typer.Exit(1)


def of_profile(records: Sequence[Record], chosen: spec.Profile, name: str, path: Path) -> None:
    """Refuse a file of another profile's runs; say how many of its runs no row of this one has."""
    known = {job.cell.hash for job in jobs_of(selection(None), chosen, 1)}
    other = [one for one in records if one.cell not in known]
    if other and len(other) == len(records):
        raise RecordError(
            f"none of the {len(records)} runs in {path} is one of profile {name}; --profile says whose they are"
        )
    if other:
        say(f"{len(other)} of the {len(records)} runs in {path} are of no row of profile {name}: no table shows them")


def record_of(profile: str, path: Path | None) -> Path:
    from benchmarks import record

    return path or RESULTS / profile / record.FILE


@app.command("export")
def export_(
    file: Annotated[Path | None, typer.Argument(help="default: results/<profile>/runs.jsonl")] = None,
    profile: ProfileOption = "digits",
) -> None:
    """Write the record of every run in the store: store -> file. Refused if a run that the file holds were lost or replaced."""
    quiet()
    from benchmarks import files, record

    path = record_of(profile, file)
    try:
        spec.load_profile(profile)
        ours = Store(profile).records()
        record.refuse_loss(ours, path)
        if not ours:
            raise StoreError(f"the store holds no run of profile {profile}; `python -m benchmarks run` trains some")
        files.write_text(path, record.dumps(ours))
    except (spec.SpecError, StoreError, record.RecordError, OSError) as error:
        raise fail(error) from error
    say(f"{len(ours)} runs written: {path}")


@app.command("import")
def import_(
    file: Annotated[Path | None, typer.Argument(help="default: results/<profile>/runs.jsonl")] = None,
    profile: ProfileOption = "digits",
) -> None:
    """Fill the store with the runs of a record, without training: file -> store. Runs that the store holds are left alone."""
    quiet()
    from benchmarks import record

    path = record_of(profile, file)
    try:
        chosen, records = spec.load_profile(profile), record.load(path)
        of_profile(records, chosen, profile, path)
        store = Store(profile)
        taken = store.take_in(records)
        show_rows(store, chosen)
    except (spec.SpecError, StoreError, record.RecordError) as error:
        raise fail(error) from error
    say(f"{taken} of {len(records)} runs taken in from {path}")


@app.command("data")
def data_(
    names: Annotated[list[str] | None, typer.Argument(help="data sets; default: all", show_default=False)] = None,
    data_root: Annotated[Path, typer.Option(help="where data sets lie")] = Path("data"),
    check: Annotated[
        bool,
        typer.Option("--check", help="read them whole; exit 1 on damage, or if one that is named is missing"),
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="get what torchvision can get, then check it")] = False,
) -> None:
    """The data sets: found or not, where they were looked for, their size, how to get them."""
    quiet()
    from benchmarks.data import NAMES, PLACES, SIZES, DataError, load

    if unknown := [name for name in names or [] if name not in NAMES]:
        raise fail(DataError(f"unknown data set {unknown[0]!r}; known: {', '.join(NAMES)}"))
    if download and (refused := [name for name in names or NAMES if names and not PLACES[name].downloads]):
        raise fail(DataError(f"{refused[0]} can't be downloaded here; get it from {PLACES[refused[0]].where}"))
    root, failed = data_root.resolve(), False
    for name in names or NAMES:
        place, size = PLACES[name], SIZES[name]
        about = f"{size.train:,} + {size.test:,} images of {size.size}x{size.size}, {size.disk_gb:g} GB"
        at = place.find(root)
        state = f"found: {at}" if at else "found" if not place.folders else "not found"
        if (check or download) and (state != "not found" or (download and place.downloads)):
            try:
                found = load(name, root=root, download=download and place.downloads)
                state = f"whole: {found.source}, digest {found.digest[:16]}"
            except DataError as error:
                state, failed = str(error), True
        if state == "not found":
            looked = ", ".join(str(root / folder) for folder in place.folders)
            state = f"not found: looked for {looked}; get it from {place.where}"
            failed = failed or bool(check and names)
        say(f"{name} ({about}): {state}")
    if failed:
        raise typer.Exit(1)


class Bars:
    """One bar for all seeds, one for each that is being trained: epoch, images/s, remaining time."""

    def __init__(self, total: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn())
        self.bars = Progress(
            *columns,
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.all = self.bars.add_task("all seeds", total=total, rate="")
        self.tasks: dict[tuple[str, int], TaskID] = {}
        self.ended = 0

    def __enter__(self) -> "Bars":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, job: Job, event: Epoch | Result | Elsewhere | Note | str) -> None:
        if isinstance(event, Note):
            say(event)
            return
        title = f"{job.cell.name}, seed {job.seed}"
        if isinstance(event, Epoch):
            rate = f"{event.metrics['images_per_s']:.0f} images/s, test {event.metrics['test']:.1f} %"
            if job.key not in self.tasks:
                self.tasks[job.key] = self.bars.add_task(title, total=event.epochs, rate=rate)
            self.bars.update(self.tasks[job.key], completed=event.epoch, rate=rate)
            return
        if job.key in self.tasks:
            self.bars.remove_task(self.tasks.pop(job.key))
        self.ended += 1
        self.bars.update(self.all, completed=self.ended)
        if isinstance(event, Result):
            say(f"{title}: test {event.metrics['test/final']:.2f} %")
        elif isinstance(event, Elsewhere):
            say(f"{title}: finished elsewhere")
        else:
            say(f"{title}: {event}", "failed")


def quiet() -> None:
    """Libraries' chatter would tear the progress bars apart; MLflow's tracebacks are one error of ours (benchmarks.tracking)."""
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    for name in ("alembic", "lightning.fabric", "lightning_fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
