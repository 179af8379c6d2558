"""The claims of ``specs/claims.toml``, each judged by its own rule on the records of runs."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator

from benchmarks import spec
from benchmarks.files import write_text
from benchmarks.neurons import KINDS
from benchmarks.report.tables import (
    Results,
    half_width,
    joined,
    measures,
    number,
    several_data_sets,
    stands_in,
    unmarked,
)
from benchmarks.spec import HERE, SpecError, Strict

RESAMPLES = 10_000
# worst first: a claim is as good as its worst part
VERDICTS = ("not reproduced", "not run", "not testable", "inconclusive", "reproduced")


class Contrast(Strict):
    """A second difference, of the same metric and table."""

    of: str
    minus: str


class Part(Strict):
    """One number and its bounds (how it is judged: head of ``claims.toml``)."""

    says: str
    each: list[list[dict[str, str]]] = Field(default=[])
    table: str
    metric: str
    of: str
    minus: str | None = None
    minus_metric: str | None = None
    relative: bool = False
    less: Contrast | None = None
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    float64: bool = False  # left out where the profile makes no checks in float64

    @model_validator(mode="after")
    def _consistent(self) -> "Part":
        if self.above is None and self.at_least is None and self.at_most is None:
            raise ValueError(f"part {self.says!r} has no bound; give above, at_least or at_most")
        if self.minus is None and (self.minus_metric or self.relative or self.less):
            raise ValueError(f"part {self.says!r}: minus_metric, relative and less need minus")
        return self

    def expanded(self) -> Iterator["Part"]:
        """One part for each combination of substitutions."""

        def filled(value: Any, names: dict[str, str]) -> Any:
            if isinstance(value, dict):
                return {key: filled(inner, names) for key, inner in value.items()}
            return value.format(**names) if isinstance(value, str) else value

        for choice in itertools.product(*self.each):
            names = {key: value for one in choice for key, value in one.items()}
            try:
                yield Part(**filled(self.model_dump(exclude={"each"}), names))
            except KeyError as error:
                raise SpecError(f"claims.toml, part {self.says!r}: no substitution for {{{error.args[0]}}}") from None

    @property
    def rule(self) -> str:
        bounds = {">": self.above, "≥": self.at_least, "≤": self.at_most}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)

    @property
    def unit(self) -> str:
        return "%" if self.relative or self.minus is None else "points" if "sops" not in self.metric else "G"

    def judge(self, low: float, high: float) -> str:
        """Verdict for a confidence interval."""
        if (
            (self.above is None or low > self.above)
            and (self.at_least is None or low >= self.at_least)
            and (self.at_most is None or high <= self.at_most)
        ):
            return "reproduced"
        if (
            (self.above is not None and high <= self.above)
            or (self.at_least is not None and high < self.at_least)
            or (self.at_most is not None and low > self.at_most)
        ):
            return "not reproduced"
        return "inconclusive"


class Claim(Strict):
    """A statement that can fail: the conjunction of its parts."""

    id: str
    title: str
    part: list[Part] = Field(min_length=1)


class Claims(Strict):
    """All claims, and what decides them: seeds, confidence, and how many points below its ANN a baseline may be that has learnt."""

    confidence: float = Field(gt=0, lt=1)
    seeds: list[int] = Field(min_length=2)
    learnt_within: float = Field(gt=0)
    claim: list[Claim]


class _UntestableError(Exception):
    """What was run can't tell."""


class _NotRunError(Exception):
    pass


@dataclass(frozen=True)
class Judged:
    """Verdict on a part, and the seeds that decided it; ``mean`` and the ends of the interval are NaN if there are none."""

    part: Part
    verdict: str
    reason: str = ""
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    few: str = ""  # "1 seed", if those are not all that the rule names
    published: float = float("nan")
    datasets: str = ""
    keys: frozenset[tuple[str, int]] = frozenset()  # cell and seed of the runs that decided
    runs: str = (
        ""  # what was compared: on a stand-in, parts that differ in the paper's data set alone compare the same runs
    )
    where: str = ""  # the data set, where parts are told apart by it: the paper's name on the paper's data alone

    @property
    def says(self) -> str:
        """The statement, with its data set."""
        return f"{self.where}, {self.part.says}" if self.where else self.part.says

    @property
    def said(self) -> str:
        """The verdict as people read it."""
        return f"{self.verdict} ({self.few})" if self.few else self.verdict


@dataclass(frozen=True)
class JudgedClaim:
    """Verdict on a claim, and on its parts."""

    claim: Claim
    parts: list[Judged]

    @property
    def verdict(self) -> str:
        return min((part.verdict for part in self.parts), key=VERDICTS.index)

    @property
    def said(self) -> str:
        """The verdict as people read it, with the fewest seeds behind a part."""
        few = [part for part in self.parts if part.few]
        return f"{self.verdict} ({min(few, key=lambda part: len(part.seeds)).few})" if few else self.verdict

    @property
    def tally(self) -> str:
        found = [part.verdict for part in self.parts]
        return ", ".join(f"{found.count(v)} {v}" for v in reversed(VERDICTS) if v in found)


def load(path: Path | None = None) -> Claims:
    """The claims with all parts expanded, every table, row and metric in them known.

    Raises:
        SpecError: an unknown key, table, row or metric, or a name without substitution.
    """
    claims = spec.read(path or HERE / "specs" / "claims.toml", Claims)
    try:
        expanded = [c.model_copy(update={"part": [q for p in c.part for q in p.expanded()]}) for c in claims.claim]
    except ValidationError as error:
        raise SpecError(f"claims.toml is not valid: {error}") from error
    for claim in expanded:
        for part in claim.part:
            rows = {row.id: row for row in spec.load_spec(part.table).row}
            second = (part.less.of, part.less.minus) if part.less else ()
            for row_id, metric in [(part.of, part.metric), (part.minus, part.minus_metric or part.metric)] + [
                (row_id, part.metric) for row_id in second
            ]:
                if row_id is None:
                    continue
                if row_id not in rows:
                    raise SpecError(f"claims.toml, {claim.id}: {part.table} has no row {row_id!r}")
                if metric not in measures(part.table, rows[row_id]):
                    raise SpecError(
                        f"claims.toml, {claim.id}: row {row_id!r} of {part.table} has no metric {metric!r}; "
                        f"it has {', '.join(measures(part.table, rows[row_id]))}"
                    )
    return claims.model_copy(update={"claim": expanded})


def judge(claims: Claims, results: Results) -> list[JudgedClaim]:
    """Verdicts on all claims; a comparison of the same runs stands once."""
    judged = []
    for claim in claims.claim:
        parts: dict[str, Judged] = {}
        for part in claim.part:
            if not part.float64 or results.profile.float64_checks:
                one = _judge(part, claims, results)
                parts.setdefault(one.runs, one)
        judged.append(JudgedClaim(claim, list(parts.values())))
    return judged


def _judge(part: Part, claims: Claims, results: Results) -> Judged:
    rows = {row.id: row for row in spec.load_spec(part.table).row}
    second = (part.less.of, part.less.minus) if part.less else ()
    names = [r for r in (part.of, part.minus, *second) if r]
    compared = [results.cell(rows[r]) for r in names]
    used = joined(dict.fromkeys(cell.dataset for cell in compared if cell))
    cells = [cell.hash if cell else name for cell, name in zip(compared, names, strict=True)]
    several = several_data_sets(spec.load_spec(part.table))
    stand_in = several and stands_in(rows[part.of], results)
    metrics = [part.metric, part.minus_metric or part.metric, part.metric, part.metric]
    measured = [measures(part.table, rows[name])[metric] for name, metric in zip(names, metrics, strict=False)]
    common: dict[str, Any] = {
        "published": float("nan") if stand_in else _published(part, rows),
        "datasets": used,
        "where": (used if stand_in else rows[part.of].dataset) if several else "",
        "runs": str((cells, measured, part.relative, part.rule)),
    }

    def seeds_of(row_id: str, metric: str) -> pd.Series:
        row = rows[row_id]
        if results.of_cell(results.cell(row)).empty:
            raise _NotRunError(f"row {row_id}: {results.why_not_run(row)}")
        values = results.values(part.table, row, metric)
        if values.empty:
            raise _NotRunError(f"row {row_id}: {metric} was not measured")
        if measures(part.table, row)[metric] == "certificate/broken_pct":  # nothing was promised: nothing was kept
            promised = results.of_cell(results.cell(row))["certificate/promised_pct"]
            values = values[promised.reindex(values.index) > 0]
            if values.empty:
                raise _UntestableError(f"row {row_id}: no image was certified, so nothing was promised")
        return values.reindex(claims.seeds)

    def images_of(row_id: str, metric: str) -> np.ndarray:
        row = rows[row_id]
        cell = results.cell(row)
        assert cell is not None
        found = results.finished[cell.hash, seeds[0]].per_image(measures(part.table, row)[metric])
        if found is None and part.minus is None and values.iloc[0] in (0, 100):  # a share whose images are all alike
            return np.full(1, values.iloc[0])
        if found is None:
            raise _NotRunError
        return found

    try:
        values = _contrast(part, seeds_of).dropna()
        if values.empty:
            raise _NotRunError(f"no seed of {joined(claims.seeds)} stands in all rows compared")
    except _NotRunError as error:
        return Judged(part, "not run", str(error), **common)
    except _UntestableError as error:
        return Judged(part, "not testable", str(error), **common)
    seeds, mean = tuple(values.index), float(values.mean())
    if differ := _other_data([r for r in (part.of, part.minus, *second) if r], seeds, rows, results):
        return Judged(part, "not run", f"its rows were tested on different data ({differ})", **common)
    few = f"{len(seeds)} seed" + "s" * (len(seeds) > 1) if len(seeds) < len(claims.seeds) else ""
    failed, unknown = _not_learnt(part, rows, claims, results, seeds)
    reason = ""
    if len(seeds) > 1:
        half = half_width(values, claims.confidence)
        low, high = mean - half, mean + half
        verdict = part.judge(low, high)
    else:
        try:
            if part.relative:
                raise _NotRunError
            low, high = over_images(_contrast(part, images_of), claims.confidence)
            verdict = part.judge(low, high)
        except _NotRunError:
            low, high, verdict, reason = float("nan"), float("nan"), "inconclusive", "no predictions to pair"
    keys = frozenset((cell.hash, seed) for cell in compared if cell for seed in seeds)
    common |= {"values": tuple(values), "seeds": seeds, "few": few, "keys": keys}
    if failed or unknown:
        verdict, reason = ("not testable", failed) if failed else ("not run", unknown)
    return Judged(part, verdict, reason, mean, low, high, **common)


def _other_data(names: list[str], seeds: tuple[int, ...], rows: dict[str, spec.Row], results: Results) -> str:
    """The first seed whose runs in these rows, of one data set by name, saw data of different digests; blank without one."""
    for seed in seeds:
        digests: dict[str, set[str]] = {}
        for name in names:
            cell = results.cell(rows[name])
            one = results.finished.get((cell.hash, seed)) if cell else None
            if cell and one and one.data.get("digest"):
                digests.setdefault(cell.dataset, set()).add(one.data["digest"])
        if any(len(found) > 1 for found in digests.values()):
            return f"seed {seed}"
    return ""


def over_images(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the mean of one value an image, by the percentiles of a bootstrap over the images; its stream never changes."""
    kinds, counts = np.unique(values, return_counts=True)
    drawn = np.random.RandomState(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.quantile(drawn @ kinds / len(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _not_learnt(
    part: Part, rows: dict[str, spec.Row], claims: Claims, results: Results, seeds: tuple[int, ...]
) -> tuple[str, str]:
    """Which baseline has not learnt, and of which it can't be told, as the head of ``claims.toml`` says; each blank without one."""
    failed, unknown = "", ""
    accuracies = ("accuracy_pct", "ann_accuracy_pct")
    if part.minus == part.of and part.minus_metric not in accuracies:  # two metrics of one network, none a baseline
        return failed, unknown
    baselines = [part.minus, part.less.minus if part.less else None]
    for row_id in filter(None, baselines):
        cell = results.cell(rows[row_id])
        if cell and cell.ann and part.minus_metric == "ann_accuracy_pct":
            cell = cell.ann
        if cell is None:
            continue
        runs = results.of_cell(cell)
        known = pd.Series(dtype=float) if runs.empty else runs["test/final"].reindex(seeds).dropna()
        if len(known) < len(seeds):
            unknown = f"the baseline {row_id}, as trained, was not run with all of these seeds: it may not have learnt"
            continue
        reached, best = float(known.mean()), results.best_ann(cell)
        if best is None:
            unknown = f"no ANN was run to tell whether the baseline {row_id} has learnt"
        elif reached < best[0] - claims.learnt_within:
            kind = KINDS[best[1]].title
            failed = f"its baseline {row_id} has not learnt: {reached:.2f} %, the {kind} ANN {best[0]:.2f} %"
    return failed, unknown


def _contrast(part: Part, get: Any) -> Any:
    """The part's number, from whatever ``get(row, metric)`` gives: our seeds or a published value."""
    value = get(part.of, part.metric)
    if part.minus is None:
        return value
    base = get(part.minus, part.minus_metric or part.metric)
    value = 100 * (value - base) / base if part.relative else value - base
    if part.less:
        value = value - (get(part.less.of, part.metric) - get(part.less.minus, part.metric))
    return value


def _published(part: Part, rows: dict[str, spec.Row]) -> float:
    """The same number from the paper's table, NaN where it prints none, or one for both sides."""
    paper = spec.published(part.table)
    if (
        part.minus
        and part.metric == (part.minus_metric or part.metric)
        and rows[part.of].published == rows[part.minus].published
    ):
        return float("nan")

    def get(row_id: str, metric: str) -> float:
        column = "snn_accuracy_pct" if (part.table, metric) == ("table4", "accuracy_pct") else metric
        lines = rows[row_id].published
        return float(paper[column].iloc[lines[0] - 1] or "nan") if lines and column in paper else float("nan")

    return float(_contrast(part, get))


def frame(judged: list[JudgedClaim], results: Results, claims: Claims) -> pd.DataFrame:
    """One line a claim, followed by its parts, as text."""
    lines = []
    for one in judged:
        lines.append(
            {
                "claim": one.claim.id,
                "part": "",
                "statement": one.claim.title,
                "verdict": one.said,
                "reason": one.tally,
                "profile": results.name,
            }
        )
        for i, part in enumerate(one.parts, 1):
            rows = part.part.of + (f" - {part.part.minus}" if part.part.minus else "")
            if part.part.less:
                rows += f" - ({part.part.less.of} - {part.part.less.minus})"
            lines.append(
                {
                    "claim": one.claim.id,
                    "part": str(i),
                    "statement": part.says,
                    "verdict": part.said,
                    "reason": part.reason,
                    "profile": results.name,
                    "dataset_used": part.datasets,
                    "table": part.part.table,
                    "rows": rows,
                    "metric": part.part.metric
                    + (f" - {part.part.minus_metric}" if part.part.minus_metric else "")
                    + (", relative" if part.part.relative else ""),
                    "unit": part.part.unit,
                    "rule": part.part.rule,
                    "mean": number(part.mean),
                    "ci95_low": number(part.low),
                    "ci95_high": number(part.high),
                    "n": str(len(part.values)),
                    "seeds": joined(part.seeds),
                    "per_seed": joined(number(value) for value in part.values),
                    "published": number(part.published),
                }
            )
    return pd.DataFrame(lines).fillna("")


def interval(part: Judged) -> str:
    """Mean and confidence interval as people read them."""
    if pd.isna(part.mean):
        return ""
    ends = "" if pd.isna(part.low) else f" [{part.low:.2f}, {part.high:.2f}]"
    return f"{part.mean:.2f}{ends} {part.part.unit}"


def markdown(judged: list[JudgedClaim], results: Results, claims: Claims) -> str:
    """Verdicts as a Markdown page."""
    lines = [
        f"# Claims, judged on profile `{results.name}`",
        "",
        f"{unmarked(results.profile.title)}. Generated by `python -m benchmarks report`, not by hand.",
        f"The rules stand in `benchmarks/specs/claims.toml`: paired over seeds {joined(claims.seeds)},",
        f"{claims.confidence:.0%} confidence interval of the mean (t distribution); where fewer seeds were run,",
        "the verdict says how many, and on one seed the interval is over the test images alone.",
        "A verdict here is about the data and networks of this profile.",
        "The rules were fixed before the runs that they judge, but for what says that it came later and for what makes a part not",
        f"testable (a baseline that ends more than {claims.learnt_within:g} points below its ANN), made when digits' results",
        "had been seen.",
        "",
        "| claim | verdict | parts |",
        "|---|---|---|",
        *(f"| {one.claim.id}: {unmarked(one.claim.title)} | **{one.said}** | {one.tally} |" for one in judged),
        "",
    ]
    for one in judged:
        lines += [
            f"## {one.claim.id}",
            "",
            "| part | rule | ours | the paper's own | verdict |",
            "|---|---|---|---:|---|",
        ]
        for part in one.parts:
            paper = "" if pd.isna(part.published) else f"{part.published:.2f}"
            verdict = part.said + (f": {unmarked(part.reason)}" if part.reason else "").replace("|", "\\|")
            lines.append(f"| {unmarked(part.says)} | {part.part.rule} | {interval(part)} | {paper} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def write(judged: list[JudgedClaim], results: Results, claims: Claims, folder: Path) -> None:
    """Write ``claims.csv`` and ``claims.md``."""
    write_text(folder / "claims.csv", frame(judged, results, claims).to_csv(index=False, lineterminator="\n"))
    write_text(folder / "claims.md", markdown(judged, results, claims))
