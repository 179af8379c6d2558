"""Tables from records: per table a CSV with everything and a Markdown file for people. A pure function of the records."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats  # scipy ships no types

from benchmarks.files import write_text
from benchmarks.neurons import is_ann
from benchmarks.record import COUNTED_IMAGES, Record
from benchmarks.spec import HERE, Cell, Profile, Row, Spec, load_profile, load_spec, no_data, published, resolve, tables

CONFIDENCE = 0.95
NOT_OURS = "not run: published by others"
Line = dict[str, str]


@dataclass(frozen=True)
class Results:
    """The records of one profile's runs.

    Attributes:
        seeds: one line a finished seed, by seed: ``cell``, ``seconds``, tags ``tag.*`` and metrics; sorted by cell and seed.
        finished: the records of finished seeds, by cell hash and seed.
        failures: why seeds failed, by cell hash and seed.
    """

    name: str
    profile: Profile
    seeds: pd.DataFrame
    finished: dict[tuple[str, int], Record]
    failures: dict[tuple[str, int], str]

    @classmethod
    def of(cls, name: str, records: Iterable[Record]) -> "Results":
        ordered = sorted(records, key=lambda record: record.key)
        finished = {record.key: record for record in ordered if record.status == "finished"}
        lines = [
            {
                "cell": one.cell,
                "seed": one.seed,
                "seconds": one.wall_s,
                **{f"tag.{key}": value for key, value in one.provenance.items()},
                "tag.data_digest": one.data.get("digest", ""),
                "tag.checkpoint_sha256": one.checkpoint_sha256,
                "tag.evaluation": str(one.evaluation.version) if one.evaluation else "",
                **{key: one.metrics[key] for key in sorted(one.metrics)},
            }
            for one in finished.values()
        ]
        seeds = pd.DataFrame(lines or {"cell": [], "seed": []}).set_index("seed")
        failures = {record.key: record.reason for record in ordered if record.status == "failed"}
        return cls(name, load_profile(name), seeds, finished, failures)

    @cached_property
    def by_cell(self) -> dict[str, pd.DataFrame]:
        return {str(cell): lines for cell, lines in self.seeds.groupby("cell")}

    def cell(self, row: Row) -> Cell | None:
        """The row's cell, None where the profile does not have its data."""
        return resolve(row, self.profile) if row.dataset in self.profile.datasets else None

    def of_cell(self, cell: Cell | None) -> pd.DataFrame:
        """Finished seeds of a cell, indexed by seed."""
        return self.by_cell.get(cell.hash if cell else "", self.seeds.iloc[:0])

    def values(self, table: str, row: Row, measure: str) -> pd.Series:
        """One measure of a row by seed, empty if it was not measured."""
        metric, lines = measures(table, row).get(measure), self.of_cell(self.cell(row))
        return lines[metric].dropna().astype(float) if metric in lines else pd.Series(dtype=float)

    @cached_property
    def anns(self) -> list[Cell]:
        """The cells of all ReLU and QCFS ANNs of the profile's tables."""
        cells = [self.cell(row) for table in tables() for row in load_spec(table).row]
        found = [one.ann or one for one in cells if one]
        return list({one.hash: one for one in found if is_ann(one.neuron.kind)}.values())

    def best_ann(self, cell: Cell) -> tuple[float, str] | None:
        """Mean test accuracy of the best ReLU ANN of a cell's network and data set, else of the best QCFS ANN; and which it is."""
        for kind in ("relu", "qcfs"):
            same = [
                other
                for other in self.anns
                if other.neuron.kind == kind
                and (other.architecture, other.network, other.dataset)
                == (cell.architecture, cell.network, cell.dataset)
            ]
            if found := [float(lines["test/final"].mean()) for lines in map(self.of_cell, same) if len(lines)]:
                return max(found), kind
        return None

    def why_not_run(self, row: Row) -> str:
        """Why a row has no finished seed."""
        cell = self.cell(row)
        return self._why_not_run(cell) if cell else no_data(row.dataset)

    def _why_not_run(self, cell: Cell) -> str:
        if failed := self.failed_seeds(cell):
            return list(failed.values())[-1]
        if cell.ann and self.of_cell(cell.ann).empty and self.failed_seeds(cell.ann):
            return f"its quantised ANN was not run: {self._why_not_run(cell.ann)}"
        return "no finished seed"

    def failed_seeds(self, cell: Cell) -> dict[int, str]:
        """Seeds of a cell that failed and have not finished since, with the reason."""
        finished = self.of_cell(cell).index
        return {
            seed: reason.replace(f"{HERE.parent}/", "")
            for (failed, seed), reason in self.failures.items()
            if failed == cell.hash and seed not in finished
        }

    def status(self, row: Row) -> str:
        """``run``, with the seeds that failed; or ``not run`` and why."""
        cell = self.cell(row)
        if cell is None or self.of_cell(cell).empty:
            return f"not run: {self.why_not_run(row)}"
        failed = [f"seed {seed} failed: {reason}" for seed, reason in self.failed_seeds(cell).items()]
        return "; ".join(["run", *failed])


def measures(table: str, row: Row) -> dict[str, str]:
    """What is reported of a row, and the metric of its cell's runs that it is.

    Accuracies and shares in percent, SOPs in 1e9 an image, energy in mJ an image.
    """
    source = {"trained": "ops/", "reparameterized": "reparam/", "converted": f"if/T{row.steps}/"}[row.stage]
    found = {"accuracy_pct": "test/final" if row.stage == "trained" else f"{source}accuracy"}
    if row.stage == "trained":
        found |= {"accuracy_at_best_validation_pct": "test/best_val", "accuracy_best_test_epoch_pct": "test/best"}
    found |= {"sops_g": f"{source}sops_g", "energy_mj": f"{source}energy_mj", "uncounted": f"{source}uncounted"}
    if row.stage == "trained":
        found |= {"macs_g": "ops/macs_g", "energy_with_macs_mj": "ops/energy_with_macs_mj"}
        if row.steps > 1:
            found |= {f"prefix_t{t}_not_any_time_pct": f"prefix/t{t}" for t in range(1, row.steps + 1)}
    if table == "table2":
        found |= {"before_accuracy_pct": "test/final", "after_accuracy_pct": "reparam/accuracy"}
        found |= {"before_sops_g": "ops/sops_g", "after_sops_g": "reparam/sops_g"}
    if row.levels > 1:
        found |= {
            "certificate_accuracy_change_points": "certificate/accuracy_change",
            "measured_accuracy_change_points": "certificate/measured_change",
            "certified_images_pct": "certificate/promised_pct",
            "certified_images_changed_pct": "certificate/broken_pct",
            "reparameterised_changed_pct": "reparam/changed_pct",
            "reparameterised_changed_float64_pct": "reparam/changed_float64_pct",
        }
    if table == "table4":
        found["ann_accuracy_pct"] = "ann/accuracy" if row.start else "test/final"
        if row.start:
            found |= {
                "before_finetuning_accuracy_pct": "before/accuracy",
                "before_finetuning_agree_pct": "before/agree_pct",
                "before_finetuning_agree_float64_pct": "before/agree_float64_pct",
            }
    return found


def half_width(values: pd.Series, confidence: float = CONFIDENCE) -> float:
    """Half of the confidence interval of the mean, by the t distribution; NaN for fewer than two values."""
    n = len(values)
    return float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def number(value: float) -> str:
    """Six significant digits, blank for NaN."""
    return "" if pd.isna(value) else f"{value:.6g}"


def joined(values: Iterable[Any]) -> str:
    return "; ".join(str(value) for value in values)


def summary(name: str, values: pd.Series) -> Line:
    return {
        f"{name}_mean": number(values.mean()) if len(values) else "",
        f"{name}_sd": number(values.std(ddof=1)) if len(values) > 1 else "",
        f"{name}_ci95": number(half_width(values)),
        f"{name}_n": str(len(values)),
        f"{name}_per_seed": joined(number(v) for v in values),
    }


def own_data(row: Row, cell: Cell | None) -> bool:
    """Whether a cell runs on the very data set that the paper used."""

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    return cell is not None and plain(row.dataset) == plain(cell.dataset)


def several_data_sets(spec: Spec) -> bool:
    """Whether a table's rows are told apart by data set, too."""
    return len({row.dataset for row in spec.row}) > 1


def stands_in(row: Row, results: Results) -> bool:
    """Whether a row runs on other data than the paper's."""
    cell = results.cell(row)
    return cell is not None and not own_data(row, cell)


def ours(table: str, rows: list[Row], spec: Spec, paper: pd.DataFrame, results: Results) -> Line:
    """The CSV line of a row of the spec, or of several that are one run on a stand-in.

    In a table of several data sets the paper's names and numbers stand only in lines on the paper's data.
    """
    row = rows[0]
    cell = results.cell(row)
    beside = not (several_data_sets(spec) and stands_in(row, results))
    lines = results.of_cell(cell)
    values = {name: results.values(table, row, name) for name in measures(table, row)}
    line = {
        "row": joined(row.id for row in rows),
        "label": row.label,
        "architecture": results.profile.architecture(row),
        "paper_dataset": row.dataset if beside else "",
        "dataset_used": cell.dataset if cell else "",
        "neuron": row.neuron,
        "L": str(row.levels),
        "T": str(row.steps),
        "Tq": str(row.tq or ""),
        **{
            f"published_{column}": " / ".join(paper[column].iloc[i - 1] for i in row.published * beside)
            for column in spec.published_columns
        },
        "status": results.status(row),
        "n": str(len(lines)),
        "seeds": joined(lines.index),
    }
    if len(left_out := values.pop("uncounted")):
        line["operations_not_counted"] = number(left_out.max())
    for name, series in values.items():
        line |= summary(name, series)
    final = spec.published_columns[-1] if table == "table4" else "accuracy_pct"
    if (
        own_data(row, cell)
        and len(row.published) == 1
        and final in spec.published_columns
        and len(values["accuracy_pct"])
    ):
        theirs = float(line[f"published_{final}"] or "nan")
        line["ours_minus_published_points"] = number(values["accuracy_pct"].mean() - theirs)

    def tag(name: str) -> str:
        key = f"tag.{name}"
        return joined(dict.fromkeys(lines[key].dropna())) if key in lines else ""

    return line | {
        "profile": results.name,
        "deviations": joined(results.profile.deviations),
        "config_hash": cell.hash if cell else "",
        "config": json.dumps(cell.model_dump(mode="json"), sort_keys=True) if cell else "",
        "data_digest": tag("data_digest"),
        "evaluation": tag("evaluation"),
        "device": tag("device"),
        "dtype": cell.recipe.precision if cell else "",
        "torch": tag("torch"),
        "python": tag("python"),
        "machine": tag("machine"),
        "checkpoint_sha256_per_seed": joined(lines["tag.checkpoint_sha256"])
        if "tag.checkpoint_sha256" in lines
        else "",
        # these three differ from run to run even where every number above is the same
        "commit": tag("commit"),
        "dirty": tag("dirty"),
        "wall_s_per_seed": joined(f"{s:.1f}" for s in lines["seconds"]) if len(lines) else "",
    }


def theirs(table: str, spec: Spec, paper: pd.DataFrame, i: int, profile: str) -> Line:
    """The CSV line of a row of the paper's table that we don't run."""
    source = paper.iloc[i]
    return {
        "row": f"published-{i + 1}",
        "label": source.get("method", ""),
        "architecture": source["architecture"],
        "paper_dataset": source.get("dataset", spec.row[0].dataset),
        "neuron": source.get("neuron", ""),
        "L": source.get("L", ""),
        "T": source.get("T", source.get("T_total", "")),
        "Tq": source.get("Tq", ""),
        **{f"published_{column}": source[column] for column in spec.published_columns},
        "status": NOT_OURS,
        "n": "0",
        "profile": profile,
    }


def table_frame(table: str, results: Results) -> pd.DataFrame:
    """All lines of a table as text: those on stand-ins, then by the paper's data sets, in each those published by others first."""
    spec, paper = load_spec(table), published(table)
    runs: dict[Any, list[Row]] = {}
    for row in spec.row:
        cell = results.cell(row)
        one = (
            (cell.hash, row.stage, row.steps)
            if cell and several_data_sets(spec) and stands_in(row, results)
            else row.id
        )
        runs.setdefault(one, []).append(row)
    mine = [ours(table, rows, spec, paper, results) for rows in runs.values()]
    beside = [row for row in spec.row if not (several_data_sets(spec) and stands_in(row, results))]
    taken = {line - 1 for row in beside for line in row.published}
    others = [theirs(table, spec, paper, i, results.name) for i in range(len(paper)) if i not in taken]
    order: list[str] = ["", *dict.fromkeys(row.dataset for row in spec.row)]
    lines = sorted(others + mine, key=lambda line: order.index(line["paper_dataset"]))  # stable
    longest = sorted(mine, key=len)[-1]
    columns = list(dict.fromkeys([*longest, *(key for line in mine for key in line)]))
    last = columns.index("profile")
    late = [c for c in columns if c not in longest]  # measures that only some rows have: before the provenance
    columns = [c for c in columns[:last] if c not in late] + late + [c for c in columns[last:] if c not in late]
    return pd.DataFrame(lines, columns=columns).fillna("")


# What people see of a table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One place of a table as people see it; ``order`` is what to sort by where the text won't do."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class View:
    """A table as people see it."""

    table: str
    title: str
    notes: list[str]
    columns: list[str]
    numeric: list[bool]
    lines: list[list[Shown]]
    kinds: list[str]  # "ours", "not run" or "published", a line


def percent(line: Line, name: str, digits: int = 2) -> Shown:
    """Mean ± 95 % CI of a measure in percent or points."""
    if not line.get(f"{name}_mean"):
        return Shown("")
    mean, ci = float(line[f"{name}_mean"]), line[f"{name}_ci95"]
    few = f" (n = {line[f'{name}_n']})" if line[f"{name}_n"] != line["n"] else ""  # a metric that only some seeds have
    return Shown(f"{mean:.{digits}f}" + (f" ± {float(ci):.{digits}f}" if ci else "") + few, mean)


def scaled(value: str, units: tuple[tuple[float, str], ...]) -> Shown:
    """A number, rounded, with the largest unit that leaves at least one digit before the point."""
    if not value:
        return Shown("")
    rounded = float(f"{float(value):.3g}")
    factor, unit = next((u for u in units if abs(rounded) >= u[0]), units[-1])
    return Shown(f"{rounded / factor:.3g} {unit}" if rounded else "0", float(value))


def operations(line: Line, name: str = "sops_g") -> Shown:
    """Synaptic operations; an ANN has none."""
    if is_ann(line["neuron"]):
        return Shown("")
    return scaled(line.get(f"{name}_mean", ""), ((1, "G"), (1e-3, "M"), (1e-6, "k")))


def energy(line: Line) -> Shown:
    """Energy of synaptic operations; an ANN has none."""
    if is_ann(line["neuron"]):
        return Shown("")
    return scaled(line.get("energy_mj_mean", ""), ((1, "mJ"), (1e-3, "µJ"), (1e-6, "nJ")))


def plain(line: Line, name: str) -> Shown:
    text = line.get(name, "")
    try:
        return Shown(text, float(text))
    except ValueError:
        return Shown(text)


def result(line: Line) -> Shown:
    """Our final-epoch accuracy, or why there is none."""
    if line["status"] == NOT_OURS:
        return Shown("–")
    if line["status"].startswith("not run"):
        return Shown(line["status"])
    return percent(line, "accuracy_pct")


def seeds(line: Line) -> Shown:
    """How many seeds the numbers come from, and how many failed."""
    if line["n"] == "0":
        return Shown("")
    failed = line["status"].count("; seed ")
    return Shown(line["n"] + (f", {failed} failed" if failed else ""), float(line["n"]))


Column = tuple[str, Callable[[Line], Shown]]


def text(header: str, name: str) -> Column:
    return header, lambda line: plain(line, name)


def share(header: str, name: str) -> Column:
    return header, lambda line: percent(line, name)


def view_columns(table: str) -> list[Column]:
    network = text("network", "architecture")
    shape = [text("L", "L"), text("T", "T")]
    paper = text("paper: accuracy %", "published_accuracy_pct")
    final: Column = "ours: accuracy %", result
    counted: Column = "seeds", seeds
    others = [share("at best validation", "accuracy_at_best_validation_pct")]
    others += [share("best test epoch", "accuracy_best_test_epoch_pct")]
    cost: list[Column] = [("ours: SOPs", operations), ("ours: energy", energy)]
    match table:
        case "table1":
            published_cost = [
                text("paper: SOPs, G", "published_sops_g"),
                text("paper: energy, mJ", "published_energy_mj"),
            ]
            return [text("neuron", "label"), network, paper, *published_cost, final, *others, *cost, counted]
        case "table2":
            published_cost = [text("paper: SOPs, G", "published_sops_g")]
            changed = [
                share("predictions changed %", "reparameterised_changed_pct"),
                share("in float64 %", "reparameterised_changed_float64_pct"),
            ]
            return [text("stage", "label"), network, paper, *published_cost, final, *cost, *changed, counted]
        case "table4":
            return [
                text("method", "label"),
                network,
                text("paper: ANN %", "published_ann_accuracy_pct"),
                text("paper: SNN %", "published_snn_accuracy_pct"),
                share("ours: ANN %", "ann_accuracy_pct"),
                ("ours: SNN %", result),
                share("before fine-tuning %", "before_finetuning_accuracy_pct"),
                share("agrees with ANN %", "before_finetuning_agree_pct"),
                share("in float64 %", "before_finetuning_agree_float64_pct"),
                cost[0],
                counted,
            ]
        case "table_s1":
            shape = [text("L·T", "steps_total")]
    method = text("method", "label")
    return [
        ("data set", lambda line: Shown(line["paper_dataset"] or line["dataset_used"])),
        method,
        network,
        *shape,
        paper,
        final,
        *others,
        cost[0],
        counted,
    ]


def view(table: str, frame: pd.DataFrame, results: Results) -> View:
    """What people see of a table; columns that no line fills are left out."""
    spec = load_spec(table)
    lines: list[Line] = frame.to_dict("records")
    for line in lines:
        total = line["status"] == NOT_OURS or not line["L"]
        line["steps_total"] = line["T"] if total else str(int(line["L"]) * int(line["T"]))
        if is_ann(line["neuron"]):
            line["L"] = line["T"] = line["steps_total"] = ""
        elif table == "table4" and line["status"] == NOT_OURS:
            line["label"] += f" T={line['T']}"
    columns = [(header, [show(line) for line in lines]) for header, show in view_columns(table)]
    columns = [(header, shown) for header, shown in columns if any(place.text for place in shown)]
    used = joined(dict.fromkeys(d for d in frame["dataset_used"] if d))
    same = any(own_data(row, results.cell(row)) for row in spec.row)
    theirs_on = joined(dict.fromkeys(row.dataset for row in spec.row if row.published))
    other = f" The paper's numbers are from other data ({theirs_on}), not to be compared."
    notes = [
        f"Ours: {used}, last epoch, mean ± 95 % confidence interval of the mean over the seeds (t distribution)."
        + ("" if same or not theirs_on else other)
    ]
    if any(header == "best test epoch" for header, _ in columns):
        notes.append("“Best test epoch” is the paper's protocol: the epoch is chosen on the test set.")
    if any(header == "ours: SOPs" for header, _ in columns):
        notes.append(f"SOPs: an image's, mean over the first {COUNTED_IMAGES:,} test images, or all if they are fewer.")
    versions = sorted({v for line in lines for v in line.get("evaluation", "").split("; ") if v})
    if len(versions) > 1:
        notes.append(
            f"Rows were evaluated by versions {joined(versions)} of the code that evaluates; "
            "`python -m benchmarks evaluate` measures all by one."
        )
    left_out = [
        f"{line['label']}, {line['architecture']} ({line['operations_not_counted']})"
        for line in lines
        if line.get("operations_not_counted")
    ]
    if left_out:
        notes.append(
            "SOPs and energy leave out operations whose cost in spikes nothing gives, as attention's products of two "
            f"activations; how many, by network: {'; '.join(dict.fromkeys(left_out))}."
        )
    notes += [spec.note] if spec.note else []
    statuses = [(line["label"], line["architecture"], line["status"]) for line in lines]
    failed = [f"{label}, {network}: {status[5:]}" for label, network, status in statuses if status.startswith("run; ")]
    notes += list(dict.fromkeys(failed))
    return View(
        table=table,
        title=spec.title,
        notes=notes,
        columns=[header for header, _ in columns],
        numeric=[any(place.order is not None for place in shown) for _, shown in columns],
        lines=[[shown[i] for _, shown in columns] for i in range(len(lines))],
        kinds=[
            "published" if s == NOT_OURS else "not run" if s.startswith("not run") else "ours" for s in frame["status"]
        ],
    )


def markdown(shown: View, results: Results) -> str:
    """The view as a Markdown page."""
    title = unmarked(results.profile.title)
    return "\n".join(
        [
            f"# {unmarked(shown.title)}",
            "",
            f"Profile `{results.name}`: {title}. Generated by `python -m benchmarks report`, not by hand;",
            f"every number, with configuration and provenance, stands in `{shown.table}.csv`.",
            "",
            *markdown_table(shown),
            "",
            *(f"- {unmarked(note)}" for note in shown.notes),
            *(f"- Deviation from the paper: {unmarked(deviation)}." for deviation in results.profile.deviations),
            "",
        ]
    )


def unmarked(text: str) -> str:
    """A text on one line of Markdown, where no ``<`` begins an element of HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def markdown_table(shown: View) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(unmarked(cell).replace(">", "&gt;").replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---:" if numeric else "---" for numeric in shown.numeric) + "|"
    return [row(shown.columns), rule, *(row(place.text for place in line) for line in shown.lines)]


def write_tables(results: Results, folder: Path) -> dict[str, View]:
    """Write ``<table>.csv`` and ``<table>.md`` of every table into the folder."""
    views = {}
    for table in tables():
        frame = table_frame(table, results)
        write_text(folder / f"{table}.csv", frame.to_csv(index=False, lineterminator="\n"))
        views[table] = view(table, frame, results)
        write_text(folder / f"{table}.md", markdown(views[table], results))
    return views
