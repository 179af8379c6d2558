"""Runs in MLflow: an experiment a table, a parent run a cell, a nested run a seed. The only module that writes to it."""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from benchmarks.lease import LASTS, Lease, at_work, owner
from benchmarks.record import Epoch, Evaluation, Record, RecordError, Result, pack, parse
from benchmarks.spec import HERE, Cell, content_hash, load_spec, tables
from benchmarks.tracking import StoreError, connect, explained, tracking_uri, without_secrets

RECORD = "record.json"
SEEDS = "tags.kind = 'seed' and attributes.status = 'FINISHED'"
SEED = re.compile("[0-9]{1,18}")
UNSETTLED = "unsettled"
TAKEN = "taken over"
ABANDONED = 60_000  # ms after which an unsettled run's process is taken for dead
Outcome = tuple[Literal["running", "finished", "failed", "left"], str]


class ClaimedError(Exception):
    """Another process has finished a seed, or is training it.

    Attributes:
        run_id: its run.
        owner: host and process that train it.
    """

    def __init__(self, run: Run) -> None:
        self.run_id, self.owner = run.info.run_id, run.data.tags.get("owner", "another process")
        super().__init__(f"trained by {self.owner}")


class CheckpointError(StoreError):
    """One seed's checkpoint is missing or damaged; the store itself is well."""


def provenance() -> dict[str, str]:
    """Commit, dirty flag, versions and host of this process, as tags."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return {
        "commit": commit or "unknown",
        "dirty": str(bool(git("status", "--porcelain", "--", "lmht", "benchmarks"))).lower() if commit else "unknown",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} logical CPUs",
        "cpu": processor(),
    }


def processor() -> str:
    """The kind of processor, as far as it decides the last bit of a sum: the instructions that ATen and oneDNN use."""
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if not torch.backends.mkldnn.is_available():
        return f"{kind}, no oneDNN"
    if held := os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA"):
        return f"{kind}, oneDNN held to {held.upper()}"
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 and later
    best = next((name for name in ("avx512_bw", "avx2", "sse4_1") if able.get(name)), "")
    return f"{kind}, oneDNN {best.split('_')[0].upper()}".strip()


def seconds(run: Run) -> float:
    """From a finished run's start to its end."""
    return (run.info.end_time - run.info.start_time) / 1000


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config as flat params: ``recipe.epochs``, ``ann.neuron.levels``."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = str(value)
    return flat


def _logged(run: Run) -> dict[str, str]:
    """A seed's cell and seed, as far as its config and params say them."""
    found = {"seed": run.data.params["seed"]} if "seed" in run.data.params else {}
    with suppress(KeyError, ValueError, RecursionError):
        found["cell"] = content_hash(json.loads(run.data.tags["config"]))
    return found


def _tagged(run: Run) -> float:
    """When an unsettled run was made, or taken over (ms since 1970)."""
    expires = run.data.tags.get("expires")
    return int(expires) - 1000 * LASTS if expires else run.info.start_time


class Store:
    """Reads and writes runs of one profile.

    Raises:
        StoreError: from every method, when the store can't be reached or written.
    """

    def __init__(self, profile: str, uri: str | None = None) -> None:
        self.profile, self.uri = profile, uri or tracking_uri()
        self.client = connect(self.uri)
        self.lease = Lease(self.client)

    def seeds(self) -> pd.DataFrame:
        """Finished seeds of the profile: one line a run with ``cell``, ``seed``, ``run_id``, tags ``tag.*`` and metrics."""
        with explained(self.uri):
            runs = self._search(SEEDS)
        return pd.DataFrame(
            [
                {
                    "cell": run.data.tags["cell"],
                    "seed": int(run.data.tags["seed"]),
                    "run_id": run.info.run_id,
                    "seconds": seconds(run),
                    **{f"tag.{key}": value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
                    **run.data.metrics,
                }
                for run in runs
            ]
        )

    def failures(self) -> dict[tuple[str, int], str]:
        """Why seeds failed, by cell hash and seed, in order of time; of several failures the latest."""
        with explained(self.uri):
            runs = self._search("tags.kind = 'seed' and attributes.status = 'FAILED'")
        runs = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        found = [((run.data.tags["cell"], int(run.data.tags["seed"])), run.data.tags.get("failed", "")) for run in runs]
        return {
            key: " ".join(reason.split()) or "no reason logged" for key, reason in found
        }  # one line, as tables need it

    def log_report(self, *folders: Path) -> None:
        """Keep what was generated from the store beside it: artifacts of the run ``report`` in experiment ``<profile>/report``."""
        with explained(self.uri):
            experiment = self._experiment("report")
            found = self.client.search_runs([experiment], "tags.kind = 'report'")
            tags = {"kind": "report", "profile": self.profile, "mlflow.runName": "report"}
            tags["mlflow.note.content"] = "Tables, figures, verdicts and report.html, generated from this store."
            run_id = found[0].info.run_id if found else self.client.create_run(experiment, tags=tags).info.run_id
            for folder in folders:
                self.client.log_artifacts(run_id, str(folder), folder.name)
            self.client.set_terminated(run_id)

    def log_latency(self, device: str, params: dict[str, Any], metrics: dict[str, float], record: Path) -> None:
        """One finished run in the experiment of a device, with pytest-benchmark's JSON file."""
        with explained(self.uri):
            tags = provenance() | {"kind": "latency", "mlflow.runName": "quick" if params["quick"] else "latency"}
            run_id = self.client.create_run(self._experiment(device), tags=tags).info.run_id
            self._log_params(run_id, {key: str(value) for key, value in params.items()})
            self.client.log_artifact(run_id, str(record))
            names = sorted(metrics)
            for start in range(0, len(names), 1000):  # MLflow takes no more at once
                self._log(run_id, {name: metrics[name] for name in names[start : start + 1000]}, 0)
            self.client.set_terminated(run_id)

    def latency(self, device: str, record: str, into: Path) -> tuple[dict[str, str], Path] | None:
        """Params and JSON file of a device's latest finished run: of a quick one only if there is no other. None without any."""
        with explained(self.uri):
            runs = self._search("tags.kind = 'latency' and attributes.status = 'FINISHED'")
            found = self.client.get_experiment_by_name(f"{self.profile}/{device}")
            runs = [run for run in runs if found and run.info.experiment_id == found.experiment_id]
            if not runs:
                return None
            run = max(runs, key=lambda run: (run.data.params["quick"] == "False", run.info.start_time, run.info.run_id))
            return run.data.params, Path(self.client.download_artifacts(run.info.run_id, record, str(into)))

    def history(self, run_id: str, metric: str) -> pd.Series:
        """A metric of one run by epoch."""
        with explained(self.uri):
            points = self.client.get_metric_history(run_id, metric)
        return pd.Series({point.step: point.value for point in points}, name=metric).sort_index()

    def checkpoint(self, run_id: str, into: Path) -> Path:
        """Fetch a seed's checkpoint into a folder.

        Raises:
            CheckpointError: it is missing, or its bytes are not those that were logged.
        """
        remedy = f"put the file back, or train the seed again after `mlflow runs delete --run-id {run_id}`"
        with explained(self.uri):
            run = self.client.get_run(run_id)
        try:
            path = Path(self.client.download_artifacts(run_id, "checkpoint.pt", str(into)))
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except (MlflowException, OSError) as error:
            where = f"checkpoint of run {run_id} can't be read at {run.info.artifact_uri}"
            why = without_secrets(f"{where}: {' '.join(str(error).split())}", run.info.artifact_uri)
            raise CheckpointError(f"{why}; {remedy}") from error
        if found != run.data.tags.get("checkpoint_sha256"):
            raise CheckpointError(f"checkpoint of run {run_id} is damaged: its SHA-256 is not the logged one; {remedy}")
        return path

    def open_seed(self, table: str, cell: Cell, seed: int, device: str, going_on: str | None = None) -> tuple[str, int]:
        """Claim a seed for this process and start its run below its cell's, or take up the one that a kept state belongs to.

        Runs of the seed that a dead process left open are closed as killed, and those removed whose making was cut short.

        Returns:
            The run, and how many epochs it has logged.

        Raises:
            ClaimedError: the seed is finished, or another process is training it.
        """
        with explained(self.uri):
            query = f"tags.kind = 'seed' and tags.cell = '{cell.hash}' and tags.seed = '{seed}'"
            found = {run.info.run_id: run for run in self._search(query)}
            for run in found.values():
                self._check_free(run)
            for run_id, run in found.items():
                if run.info.status == "RUNNING" and run_id != going_on:
                    self.pause(run_id)
                    if UNSETTLED in run.data.tags and not run.data.metrics:
                        self.client.delete_run(run_id)
            running = f"{query} and attributes.status = 'RUNNING'"
            if going_on in found:
                assert going_on is not None
                self._take_over(found[going_on], running)
                return going_on, len(self.client.get_metric_history(going_on, "epoch/loss"))
            experiment = self._experiment(table)
            parent = self._parent(experiment, cell)
            tags = provenance() | {
                "kind": "seed",
                "cell": cell.hash,
                "seed": str(seed),
                "device": device,
                "profile": self.profile,
                "table": table,
                "config": json.dumps(cell.model_dump(mode="json"), sort_keys=True),
                **self.lease.tags(),
                UNSETTLED: "true",
            }
            tags |= {"mlflow.parentRunId": parent, "mlflow.runName": f"seed {seed}", "title": cell.name}
            run = self.client.create_run(experiment, tags=tags)
            self.lease.take(run.info.run_id)
            try:
                self._log_params(run.info.run_id, flatten(cell.model_dump()) | {"seed": str(seed)})
                if other := self._settle(running, run.info.run_id):
                    self.client.delete_run(run.info.run_id)
                    raise ClaimedError(other)
            except BaseException:
                self.lease.release(run.info.run_id)
                raise
        return run.info.run_id, 0

    def _take_over(self, run: Run, query: str) -> None:
        """Make another process's unfinished run this one's; ``query`` finds the seed's running ones.

        A param never changes its value in MLflow: only one process gets it. A run is not read in one moment: whoever gets the param
        marks the run as running, then the turn as taken; so one that has read that mark, and asks for the status after it, knows.
        """
        run_id, now = run.info.run_id, get_current_time_millis()
        turns = sum(name.startswith(f"{TAKEN}/") for name in run.data.params)
        whose, _, until = run.data.params.get(f"{TAKEN}/{turns}", "").rpartition(" until ")
        under_way = run.data.tags.get(TAKEN, "0") != str(turns)  # somebody has the param, and not yet the tag
        if under_way and at_work(whose.rpartition(" ")[0], until, until > str(now)):
            raise ClaimedError(run)
        self._check_free(self.client.get_run(run_id))
        claim = f"{owner()} {uuid.uuid4().hex[:8]} until {now + ABANDONED}"
        try:
            self.client.log_param(run_id, f"{TAKEN}/{turns + 1}", claim)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise ClaimedError(self.client.get_run(run_id)) from error
        self.lease.take(run_id)
        try:
            tags = self.lease.tags() | {UNSETTLED: "true"}
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            self.client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            self.client.set_tag(run_id, TAKEN, str(turns + 1))
            if other := self._settle(query, run_id):  # made at the same moment by a process without this one's state
                self.pause(run_id)
                raise ClaimedError(other)
        except BaseException:
            self.lease.release(run_id)
            raise

    def _check_free(self, run: Run) -> None:
        if run.info.status == "FINISHED" or (run.info.status == "RUNNING" and self.lease.alive(run)):
            raise ClaimedError(run)

    def _settle(self, query: str, run_id: str) -> Run | None:
        """To which run one just made or taken over, tagged unsettled, gives way: several processes may do so for one thing at once.

        Each looks after it has tagged its own. One that sees a settled run, or an unsettled one of a smaller id, gives way and must
        take its own out of the others' sight; one that sees only larger ones waits until they are gone; one that sees none is
        settled. So exactly one stays.
        """
        while True:
            now = get_current_time_millis()
            others = [
                run
                for run in self._search(query)
                if run.info.run_id != run_id and (UNSETTLED not in run.data.tags or now - _tagged(run) < ABANDONED)
            ]
            before = [run for run in others if UNSETTLED not in run.data.tags or run.info.run_id < run_id]
            if before:
                return before[0]
            if not others:
                self.client.delete_tag(run_id, UNSETTLED)
                return None
            time.sleep(0.05)

    def look(self, run_id: str) -> Outcome:
        """What became of a run that another process trains."""
        with explained(self.uri):
            run = self.client.get_run(run_id)
        status, deleted = run.info.status, run.info.lifecycle_stage == "deleted"
        if status == "RUNNING" and self.lease.alive(run) and not deleted:
            return "running", run.data.tags.get("owner", "")
        if status == "FAILED":
            return "failed", run.data.tags.get("failed", "no reason logged")
        return ("finished" if status == "FINISHED" and not deleted else "left"), ""

    def pause(self, run_id: str) -> None:
        """Close a seed's run that its training left unfinished."""
        with explained(self.uri):
            self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
        self.lease.release(run_id)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """However the block ends, no run stays claimed by this process: what is unfinished then is closed as killed."""
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Close every run that this process has claimed, as killed."""
        for run_id in list(self.lease.mine):
            try:
                self.pause(run_id)
            except StoreError:  # away: the run is closed by whoever takes the seed next
                break
        for run_id in list(self.lease.mine):
            self.lease.release(run_id)

    def _still_ours(self, run_id: str) -> Run:
        """The run; refused if another process has taken it over, since this one's claim had expired."""
        run = self.client.get_run(run_id)
        if run.data.tags.get("owner") != owner() or run.info.status == "KILLED":
            self.lease.release(run_id)
            raise ClaimedError(run)
        return run

    def log_epoch(self, run_id: str, epoch: Epoch, when: int | None = None) -> None:
        """Log one epoch's metrics, measured at ``when`` (ms since 1970; default: now). Repeated with that time it changes nothing.

        Raises:
            ClaimedError: another process has taken the run over.
        """
        with explained(self.uri):
            self._still_ours(run_id)
        self._log(run_id, {f"epoch/{key}": value for key, value in epoch.metrics.items()}, epoch.epoch, when)

    def finish(self, run_id: str, result: Result, when: int | None = None) -> None:
        """Log the final metrics, data and checkpoint, and mark the seed finished: only then does it count as run.

        What a process that was killed at it has logged already is not logged again.

        Raises:
            ClaimedError: another process has taken the run over.
        """
        with explained(self.uri):
            known = self._still_ours(run_id).data.metrics
            source = result.data
            dataset = Dataset(source["name"], source["digest"][:36], "local", f'{{"uri": "{source["source"]}"}}')
            self.client.log_inputs(
                run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train, val, test")])]
            )
            self.client.log_artifact(run_id, str(result.checkpoint))
            self._log(run_id, {name: one for name, one in result.metrics.items() if name not in known}, 0, when)
            self.client.set_tag(run_id, "data_digest", source["digest"])
            if result.device:
                self.client.set_tag(run_id, "device", result.device)
            if result.measured.uncounted:
                self.client.set_tag(run_id, "uncounted", ", ".join(result.measured.uncounted)[:5000])
            sha256 = hashlib.sha256(result.checkpoint.read_bytes()).hexdigest()
            self.client.set_tag(run_id, "checkpoint_sha256", sha256)
            self._keep_record(run_id, "finished", result=result, checkpoint_sha256=sha256)
            self.client.set_terminated(run_id)
        self.lease.release(run_id)

    def fail(self, run_id: str, reason: str) -> None:
        """Mark the seed failed, and say why.

        Raises:
            ClaimedError: another process has taken the run over.
        """
        reason = " ".join(reason.split())  # a table's cell is one line
        with explained(self.uri):
            self._still_ours(run_id)
            self.client.set_tag(run_id, "failed", reason[:5000])
            self._keep_record(run_id, "failed", reason=reason.replace(f"{HERE.parent}/", ""))
            self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
        self.lease.release(run_id)

    def _keep_record(self, run_id: str, status: str, result: Result | None = None, **more: Any) -> None:
        """Write the run's record beside it: what is exported, and all that reports need to know of the run."""
        run = self.client.get_run(run_id)
        tags = run.data.tags
        names = [name.removeprefix("epoch/") for name in sorted(run.data.metrics) if name.startswith("epoch/")]
        if result:
            measured = result.measured
            more |= {"data": result.data, "metrics": result.metrics, "tgim": measured.tgim}
            more |= {"predictions": pack(measured.labels, measured.predictions) if len(measured.labels) else {}}
            where = {key: tags[key] for key in ("commit", "dirty", "cpu")}
            more |= {"evaluation": Evaluation(version=measured.version, **where)}
        record = Record(
            table=tags["table"],
            title=tags["title"],
            cell=tags["cell"],
            seed=int(tags["seed"]),
            config=json.loads(tags["config"]),
            provenance={key: tags[key] for key in (*provenance(), "device")},
            status=status,  # type: ignore[arg-type]
            history={name: [float(v) for v in self.history(run_id, f"epoch/{name}")] for name in names},
            wall_s=round((get_current_time_millis() - run.info.start_time) / 1000, 1),
            **more,
        )
        self.client.log_text(run_id, record.line() + "\n", RECORD)

    def records(self, imported: bool = True) -> list[Record]:
        """The record of every finished seed, and of the latest failure of a seed that has not finished.

        ``imported=False`` leaves imported ones out: only runs trained here can confirm a record.
        """
        return [record for _, record in self.held(imported).values()]

    def held(self, imported: bool = True) -> dict[tuple[str, int], tuple[str, Record]]:
        """Run id and record of those seeds, by cell hash and seed; a run trained here goes before an imported one."""
        found: dict[tuple[str, int], tuple[str, Record]] = {}
        with explained(self.uri):
            runs = self._search(SEEDS)
            runs += self._search("tags.kind = 'seed' and attributes.status = 'FAILED'")
            runs = sorted(
                [run for run in runs if imported or run.data.tags.get("imported") != "true"],
                key=lambda run: (
                    run.info.status == "FINISHED",
                    run.data.tags.get("imported") != "true",
                    run.info.start_time,
                    run.info.run_id,
                ),
            )
            for run in runs:  # the last one of a seed stays
                if record := self._record(run):
                    found[record.key] = run.info.run_id, record
        return found

    def renew(self, run_id: str, record: Record) -> None:
        """Put another evaluation of a run in the place of the one that it has: its record and its metrics."""
        with explained(self.uri):
            self._log(run_id, record.metrics, 0)
            self.client.log_text(run_id, record.line() + "\n", RECORD)

    def take_in(self, records: Sequence[Record]) -> int:
        """Log runs from their records, without training: those that say more than the store holds of their seed: nothing yet, a
        failure, while they are finished, or an older evaluation of the same training. Returns how many.

        They have everything but a checkpoint, and the tag ``imported``.
        """
        held = self.held()
        taken = 0
        with self.leaving():
            for record in records:
                run_id, mine = held.get(record.key, ("", None))
                if mine and record.evaluated_after(mine):
                    self.renew(run_id, record)
                    taken += 1
                if mine and mine.status in ("finished", record.status):
                    continue
                cell = Cell(**record.config)
                try:
                    run_id, _ = self.open_seed(record.table, cell, record.seed, record.provenance.get("device", ""))
                except ClaimedError:  # just being trained here: that goes before an import
                    continue
                with explained(self.uri):
                    own = {"kind", "cell", "seed", "owner", "expires", "imported"}  # what the store is searched by
                    tags = {key: value for key, value in record.provenance.items() if key not in own} | {
                        "imported": "true"
                    }
                    if record.status == "finished":
                        tags |= {"checkpoint_sha256": record.checkpoint_sha256, "data_digest": record.data["digest"]}
                    else:
                        tags |= {"failed": record.reason[:5000]}
                    self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
                    now = get_current_time_millis()
                    points = [
                        Metric(f"epoch/{name}", value, now, epoch)
                        for name, values in record.history.items()
                        for epoch, value in enumerate(values, 1)
                    ]
                    points += [Metric(name, value, now, 0) for name, value in record.metrics.items()]
                    for start in range(0, len(points), 1000):  # MLflow takes no more at once
                        self.client.log_batch(run_id, points[start : start + 1000])
                    self.client.log_text(run_id, record.line() + "\n", RECORD)
                    self.client.set_terminated(run_id, record.status.upper())
                    self.lease.release(run_id)
                taken += 1
        self.renew_cells()
        return taken

    def close_cell(self, table: str, cell: Cell) -> None:
        """Put the mean over all finished seeds on the parent run, so that the cell can be read in MLflow's own pages."""
        with explained(self.uri):
            parent = self._parent(self._experiment(table), cell)
            self._close(parent, self._search(f"{SEEDS} and tags.cell = '{cell.hash}'"))

    def renew_cells(self) -> None:
        """Close parent runs that a killed process left open or with the mean of too few seeds."""
        with explained(self.uri):
            seeds: dict[str, list[Run]] = {}
            for run in self._search(SEEDS):
                seeds.setdefault(run.data.tags["cell"], []).append(run)
            for parent in self._search("tags.kind = 'cell'"):
                mine = seeds.get(parent.data.tags["cell"], [])
                if parent.info.status != "FINISHED" or parent.data.tags.get("seeds", "0") != str(len(mine)):
                    self._close(parent.info.run_id, mine)

    def show_rows(self, cells: dict[str, list[Cell]]) -> None:
        """In the experiment of each table, a run of kind ``row`` with the means of each cell whose seeds lie in another one."""
        with explained(self.uri):
            parents = {run.data.tags["cell"]: run for run in self._search("tags.kind = 'cell'")}
            shown = {(run.info.experiment_id, run.data.tags["cell"]): run for run in self._search("tags.kind = 'row'")}
            for table, some in cells.items():
                for cell in {one.hash: one for one in some}.values():
                    parent = parents.get(cell.hash)
                    if parent is None or parent.data.tags.get("seeds", "0") == "0":
                        continue
                    experiment = self._experiment(table)
                    there = shown.get((experiment, cell.hash))
                    if parent.info.experiment_id == experiment or (there and there.data.metrics == parent.data.metrics):
                        continue
                    tags = {"kind": "row", "cell": cell.hash, "profile": self.profile, "mlflow.runName": cell.name}
                    tags["mlflow.note.content"] = f"{cell.name}. Its seeds are logged under run {parent.info.run_id}."
                    run_id = (there or self.client.create_run(experiment, tags=tags)).info.run_id
                    if not there:
                        self._log_params(run_id, flatten(cell.model_dump()))
                    self._log(run_id, parent.data.metrics, 0)
                    self.client.set_terminated(run_id)

    def _close(self, parent: str, seeds: list[Run]) -> None:
        means = pd.DataFrame([run.data.metrics | {"seconds": seconds(run)} for run in seeds]).mean().dropna()
        self._log(parent, {f"mean/{key}": value for key, value in means.items()}, len(seeds))
        self.client.set_tag(parent, "seeds", str(len(seeds)))
        self.client.set_terminated(parent)

    def _experiment(self, table: str) -> str:
        name = f"{self.profile}/{table}"
        title = load_spec(table).title if table in tables() else name
        found = self.client.get_experiment_by_name(name)
        if not found:
            try:
                return self.client.create_experiment(name, tags={"mlflow.note.content": title})
            except MlflowException as error:
                found = self.client.get_experiment_by_name(name)  # another process was quicker
                if not found and error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if not found or found.lifecycle_stage == "deleted":
            which = found.experiment_id if found else "ID"
            raise StoreError(
                f"tracking store {without_secrets(self.uri, self.uri)}: experiment {name} was deleted; "
                f"`mlflow experiments restore --experiment-id {which}` brings it back, `mlflow gc` removes it for good"
            )
        return found.experiment_id

    def _parent(self, experiment: str, cell: Cell) -> str:
        """The cell's parent run, made if there is none: at rest, since only seeds are at work."""
        query = f"tags.kind = 'cell' and tags.cell = '{cell.hash}'"
        tags = {
            "kind": "cell",
            "cell": cell.hash,
            "profile": self.profile,
            "mlflow.runName": cell.name,
            UNSETTLED: "true",
        }
        tags["mlflow.note.content"] = f"{cell.name}. Nested runs: one a seed. Cell {cell.hash}."
        while True:
            found = [run for run in self._search(query) if UNSETTLED not in run.data.tags]
            if found:
                parent = min(found, key=lambda run: (run.info.start_time, run.info.run_id))
                break
            parent = self.client.create_run(experiment, tags=tags)
            self._log_params(parent.info.run_id, flatten(cell.model_dump()))
            self.client.set_terminated(parent.info.run_id)
            if not self._settle(query, parent.info.run_id):
                break
            self.client.delete_run(parent.info.run_id)
            time.sleep(0.05)
        return parent.info.run_id

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])

    def _search(self, query: str) -> list[Run]:
        experiments = [
            e.experiment_id for e in self.client.search_experiments(filter_string=f"name LIKE '{self.profile}/%'")
        ]
        runs: list[Run] = []
        token: str | None = None
        while experiments:
            page = self.client.search_runs(experiments, query, ViewType.ACTIVE_ONLY, 1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        return [run for run in runs if self._is_ours(run)]

    def _is_ours(self, run: Run) -> bool:
        """Whether a run has the tags by which it is found; somebody may have changed or made it."""
        tags = run.data.tags
        needed = {"seed": ("cell", "seed"), "cell": ("cell",), "row": ("cell",)}.get(tags.get("kind", ""), ())
        wrong = [key for key in needed if not tags.get(key) or (key == "seed" and not SEED.fullmatch(tags[key]))]
        if "seed" in needed and not wrong:  # what was logged beside them, and does not change
            wrong = [key for key, logged in _logged(run).items() if tags[key] != logged]
        if wrong:
            said = ", ".join(f"{key} is {tags[key]!r}" if tags.get(key) else f"{key} is missing" for key in wrong)
            warnings.warn(
                f"run {run.info.run_id} is left out: of its tags {said}; put them back, or "
                f"`mlflow runs delete --run-id {run.info.run_id}`",
                stacklevel=2,
            )
        return not wrong

    def _record(self, run: Run) -> Record | None:
        """A run's record, or a warning that names what is wrong with it: the other runs go on."""
        run_id = run.info.run_id
        try:
            with TemporaryDirectory(prefix="lmht-") as folder:  # MLflow would leave one of its own there
                path = Path(self.client.download_artifacts(run_id, RECORD, folder))
                record = parse(path.read_text(encoding="utf-8"), f"run {run_id}, {RECORD}")
            if record.key == (run.data.tags["cell"], int(run.data.tags["seed"])):
                return record
            why = f"run {run_id} has the tags of another cell or seed than {RECORD}, seed {record.seed} of cell {record.cell}"
        except (RecordError, UnicodeDecodeError) as error:
            why = str(error)
        except (MlflowException, OSError):
            if any(file.path == RECORD for file in self.client.list_artifacts(run_id)):
                raise
            why = f"run {run_id} has no {RECORD}; restore the file"
        warnings.warn(f"{why}; till then it is left out (or `mlflow runs delete --run-id {run_id}`)", stacklevel=2)
        return None

    def _log(self, run_id: str, metrics: dict[str, float], step: int, when: int | None = None) -> None:
        when = when or get_current_time_millis()
        with explained(self.uri):
            self.client.log_batch(run_id, [Metric(key, float(value), when, step) for key, value in metrics.items()])
