"""Kill real trainings at random moments until they end, compare with one that was left alone, run every other fault's test, time
one worker and two: results/reliability.md.

    python tests/soak.py [--kills 50] [--out results/reliability.md]
    python tests/soak.py --kills 5 --short EMPTY_STORE

A kill hits the whole command (start, training, writing of a state, of an artifact, evaluation), which is then given again. The
moments are drawn with a fixed seed; where they fall depends on the machine. The networks are narrow, trained for a few epochs
(tests/small.py): more of their time is the start, the writing of states and runs, and the evaluation. KILLS are by kill -9, an
eighth of them of whole commands, the others of forks of one process: all that the short form does, which writes no page. As many
as of whole commands are by signals that may be caught, too. One worker and two are timed on the profile's own networks.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.tracking import MlflowClient

from benchmarks.files import write_text
from benchmarks.store import Store, provenance

ROOT = Path(__file__).parents[1]
WORDS = ("run", "table4", "--rows", "resnet20-tq4-l2t2-exact", "--jobs", "1", "--device", "cpu")
FAULTS = ("resume", "claims", "tracking", "outages", "faults", "files", "together", "ray")  # files of tests
ELSEWHERE = (  # tests of faults in other files
    "harness::test_a_full_disk_keeps_what_was_finished",
    "harness::test_a_bad_checkpoint_stops_only_what_starts_from_it",
    "harness::test_a_diverging_loss_fails_the_seed_and_says_so",
    "options::test_a_place_that_cannot_be_written_to_is_one_error",
    "options::test_a_place_where_no_state_can_be_kept_is_named_at_the_start",
    "options::test_cells_are_checked_before_anything_is_trained",
    "options::test_nonsense_in_a_profile_is_named_when_it_is_read",
    "options::test_bars_show_brackets_as_they_are",
    "record::test_an_export_never_loses_a_run",
    "record::test_an_export_never_replaces_a_run_by_another_training_of_its_seed",
    "record::test_a_damaged_file_is_refused",
    "record::test_a_damaged_record_is_named_and_the_other_runs_go_on",
    "record::test_tags_that_somebody_changed_are_named",
    "record::test_a_records_provenance_does_not_reach_the_stores_own_tags",
    "report::test_an_error_while_a_report_is_written_leaves_the_old_files",
    "report::test_a_report_that_breaks_off_leaves_the_old_set",
    "report::test_a_cell_of_a_markdown_table_is_one_line_of_text",
)
Told = list[tuple[str, str, list[tuple[int, float]]]]


@dataclass
class Series:
    """One kind of kill: how often it was injected, in how many trainings, and what came of them."""

    name: str
    signals: tuple[int, ...]
    most: int
    how: Any
    injected: int = 0
    trainings: int = 0
    equal: int = 0
    codes: dict[int, int] = field(default_factory=dict)


def start(folder: Path, *more: str, program: Sequence[str] = ("-m", "benchmarks")) -> subprocess.Popen[bytes]:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db", "OMP_NUM_THREADS": "1"}
    environment |= {"SMALL_EPOCHS": "4"}
    words = [sys.executable, *program, *WORDS, "--state-dir", str(folder / "state"), *more]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)


def small(folder: Path) -> subprocess.Popen[bytes]:
    return start(folder, program=(str(ROOT / "tests" / "small.py"),))


class Fork:
    """The small command in a fork of this process, as far as a Popen is asked here."""

    returncode: int | None = None

    def __init__(self, folder: Path) -> None:
        from small import main  # imported once, by the process that is forked

        self.pid = os.fork()
        if self.pid:
            return
        code: int | str | None = 70
        try:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db", "SMALL_EPOCHS": "4"}
            os.chdir(folder)
            main([*WORDS, "--state-dir", str(folder / "state")])
        except SystemExit as end:
            code = end.code
        except Exception:  # a fork must not go on in the code that made it
            traceback.print_exc()
        finally:
            os._exit(int(code or 0))

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired(list(WORDS), timeout or 0)
            else:
                time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def told(folder: Path) -> Told:
    """Of each finished seed: its cell, the checkpoint's SHA-256 and the history of its loss."""
    client = MlflowClient(f"sqlite:///{folder}/m.db")
    found: Told = []
    for row in Store("digits", f"sqlite:///{folder}/m.db").seeds().sort_values("cell").itertuples():
        file = Path(client.download_artifacts(row.run_id, "checkpoint.pt", str(folder)))
        points = client.get_metric_history(row.run_id, "epoch/loss")
        found.append((row.cell, hashlib.sha256(file.read_bytes()).hexdigest(), [(p.step, p.value) for p in points]))
    return found


def train(folder: Path, series: Series, moments: random.Random, span: tuple[float, float]) -> None:
    """Give the command again and again, killing it at a random moment, until it ends by itself."""
    while True:
        process = series.how(folder)
        try:
            process.wait(moments.uniform(*span) if series.injected < series.most else None)
        except subprocess.TimeoutExpired:
            process.send_signal(moments.choice(series.signals))
            if not (code := process.wait()):
                return  # its training had ended
            series.injected += 1
            series.codes[code] = series.codes.get(code, 0) + 1
            continue
        if process.returncode:
            raise SystemExit(f"the command failed after {series.name}:\n{(folder / 'log').read_text()[-3000:]}")
        return


def interrupted(series: Series, fresh: Callable[[str], Path]) -> None:
    """Trainings until as many have been killed as shall be, each compared with one that was left alone."""
    alone = fresh(f"{series.name} alone")
    took = time.monotonic()
    if series.how(alone).wait():
        raise SystemExit((alone / "log").read_text()[-3000:])
    took = time.monotonic() - took
    span = (0.0 if series.how is Fork else 0.5), 0.6 * took
    expected, moments = told(alone), random.Random(0)
    while series.injected < series.most:
        folder = fresh(f"{series.name} {series.trainings}")
        train(folder, series, moments, span)
        series.trainings += 1
        series.equal += told(folder) == expected


def other_faults(out: Path) -> subprocess.Popen[bytes]:
    """The tests of all other faults, started: they wait so much that kills go on beside them."""
    files = [f"tests/test_{name}.py" for name in FAULTS]
    files += [f"tests/test_{name.replace('::', '.py::')}" for name in ELSEWHERE]
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={out}", *files]
    long = os.environ | {"LMHT_SOAK": "1"}  # the tests that take minutes, too
    return subprocess.Popen(words, cwd=ROOT, env=long)


def outcomes(out: Path) -> list[str]:
    """A line of the page for each test of a fault."""
    cases: dict[tuple[str, str], Counter[bool]] = {}
    for case in ElementTree.parse(out).getroot().iter("testcase"):
        name = case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        cases.setdefault((case.get("classname", ""), name), Counter())[case.find("skipped") is None] += 1
    return [
        f"| {name} | {counts[True]} | {counts[False]} | {file.rpartition('.')[2]}.py |"
        for (file, name), counts in sorted(cases.items())
    ]


def workers(folders: list[Path]) -> list[str]:
    """Lines of the page: the same seeds by one worker and by two, on two stores; SystemExit unless they come to the same."""
    lines, seconds, training = [], [], []
    for jobs, folder in enumerate(folders, 1):
        began = time.monotonic()
        if start(folder, "--seeds", "2", "--jobs", str(jobs)).wait():
            raise SystemExit((folder / "log").read_text()[-3000:])
        seconds.append(time.monotonic() - began)
        address = f"sqlite:///{folder}/m.db"
        runs = [MlflowClient(address).get_run(run).info for run in Store("digits", address).seeds().run_id]
        training.append((max(run.end_time for run in runs) - min(run.start_time for run in runs)) / 1000)
        times = [f"{some[-1]:.0f} | {some[0] / some[-1]:.2f}" for some in (seconds, training)]
        lines.append(f"| {jobs} | {' | '.join(times)} |")
    if sorted(told(folders[0])) != sorted(told(folders[1])):
        raise SystemExit("two workers don't come to what one comes to")
    return lines


def page(rows: list[Series], others: list[str], scaling: list[str], seconds: float) -> str:
    lines = [
        "# What survives an interruption",
        "",
        "Generated by `tox run -e soak`. A training here is a quantised ANN on digits and the LM-HT network fine-tuned from it:",
        "narrow networks, a few epochs, so that more of the time is the writing of states and runs. It is killed at random",
        "moments, and the same command is given again until it ends; then its checkpoints (SHA-256), the history of its loss and",
        "its MLflow runs are compared with those of one that was left alone. Forks are of one process that has imported all.",
        "",
        "| fault | injected | trainings | ended bit for bit as undisturbed | epochs lost or told twice | exit codes |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(row.codes.items()))
        lost = 0 if row.equal == row.trainings else "see log"
        lines.append(f"| {row.name} | {row.injected} | {row.trainings} | {row.equal} | {lost} | {codes} |")
    about = provenance()
    lines += [
        "",
        "Every other fault is a test. Its name says what holds; these ran in the same command.",
        "",
        "| fault | cases passed | cases skipped | in tests/ |",
        "|---|---:|---:|---|",
        *others,
        "",
        "One worker and two: two seeds of the profile's own trainings, to the same bits. The whole command starts the workers,",
        "too; its trainings last from the start of the first run to the end of the last.",
        "",
        "| workers | the command, s | times as fast | its trainings, s | times as fast |",
        "|---:|---:|---:|---:|---:|",
        *scaling,
        "",
        f"Commit {about['commit'][:7]}, torch {about['torch']}, {about['machine']}; {seconds / 60:.0f} minutes.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reliability.md")
    parser.add_argument("--short", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    whole = 0 if options.short else options.kills // 8
    forks = Series("kill -9 of a fork", (signal.SIGKILL,), options.kills - whole, Fork)
    rows = [
        Series("kill -9 of the command", (signal.SIGKILL,), whole, small),
        Series("SIGTERM or SIGINT to the command", (signal.SIGTERM, signal.SIGINT), whole, small),
        forks,
    ]
    with TemporaryDirectory() as scratch:
        empty = options.short or Path(scratch, "empty.db")
        if not options.short:
            Store("digits", f"sqlite:///{empty}")

        def fresh(name: str) -> Path:
            folder = Path(scratch, name.replace(" ", "-"))
            folder.mkdir()
            shutil.copy(empty, folder / "m.db")
            return folder

        if options.short:
            interrupted(forks, fresh)
            print(f"{forks.injected} kills, {forks.equal} of {forks.trainings} trainings as undisturbed")
        else:
            scaling = workers([fresh(f"{jobs} jobs") for jobs in (1, 2)])  # on a machine that does nothing else
            with other_faults(Path(scratch, "faults.xml")) as tests:
                for row in rows:
                    interrupted(row, fresh)
            if tests.returncode:
                raise SystemExit("not every fault's test passed (pytest says which): no page")
            others = outcomes(Path(scratch, "faults.xml"))
            write_text(options.out, page(rows, others, scaling, time.monotonic() - began))
    if any(row.equal < row.trainings for row in rows):
        raise SystemExit("not bit for bit the same")


if __name__ == "__main__":
    main()
