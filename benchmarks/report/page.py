"""Everything generated from a profile's runs, in one go: tables, verdicts, figures, ``report.html``, the README's block."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from benchmarks import files, spec
from benchmarks.report import claims, figures, tables
from benchmarks.spec import SpecError, load_spec

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
EQUATIONS = {
    "ri_curves": "Mean output against a current that is uniform in time (as Fig. 2d), L = T = 2, θ = ϑ/2.",
    "firing_regions": "Spikes, and where all steps fire alike, for a current that is uniform in time (as Fig. 1).",
}
README_FIGURE = "accuracy_latency.svg"


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it."""

    name: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Sides:
    """All profiles that have runs, side by side.

    Attributes:
        judged: by profile and claim.
        table4: by profile, Table 4 where it has runs on the paper's data.
    """

    judged: dict[str, dict[str, claims.JudgedClaim]]
    table4: dict[str, tables.View]

    @classmethod
    def of(cls, all_results: Iterable[tables.Results], rules: claims.Claims) -> "Sides":
        judged, table4 = {}, {}
        for one in all_results:
            judged[one.name] = {claim.claim.id: claim for claim in claims.judge(rules, one)}
            rows = [row for row in load_spec("table4").row if tables.own_data(row, one.cell(row))]
            if any(len(one.of_cell(one.cell(row))) for row in rows):
                table4[one.name] = tables.view("table4", tables.table_frame("table4", one), one)
        return cls(judged, table4)


def write(
    results: tables.Results,
    out: Path,
    readme: Path | None = None,
    others: Iterable[tables.Results] = (),
    links: bool = False,
) -> None:
    """Write ``out/figures`` and ``out/<profile>``, and renew the README's block.

    The README shows Table 4 of all profiles that have it on the paper's data, else Table 1 on digits.

    Args:
        others: other profiles' runs, to show their verdicts, and Table 4 on the paper's data, beside these.
        links: whether the record, the theorems and the latency stand beside ``out``'s files, to link to them.

    Raises:
        SpecError: a spec, or the README's markers, are not as they should be.
    """
    folder = out / results.name
    views = tables.write_tables(results, folder)
    rules = claims.load()
    judged = claims.judge(rules, results)
    claims.write(judged, results, rules, folder)
    figures.write_equations(out / "figures")
    captions = figures.write_runs(results, folder / "figures")
    shown = [Figure(name, text, inline(folder / "figures" / f"{name}.svg")) for name, text in captions.items()]
    shown += [Figure(name, text, inline(out / "figures" / f"{name}.svg")) for name, text in EQUATIONS.items()]
    order = [*spec.profiles()]
    sides = Sides.of(sorted([results, *others], key=lambda one: order.index(one.name)), rules)
    latency = [path.stem.removeprefix("latency-") for path in sorted(out.glob("latency-*.md"))] if links else None
    files.write_text(folder / "report.html", html(results, views, judged, rules, shown, sides, latency))
    top = sides.table4 or {"digits": views["table1"]}
    if readme and results.name in top:
        update_readme(readme, readme_block(top, sides, rules, out))


def inline(path: Path) -> Markup:
    """An SVG file as an element of a page."""
    svg = (files.newest(path) or path).read_text()
    return Markup(svg[svg.index("<svg") :])


def html(
    results: tables.Results,
    views: dict[str, tables.View],
    judged: list[claims.JudgedClaim],
    rules: claims.Claims,
    shown: list[Figure],
    sides: Sides,
    latency: list[str] | None,
) -> str:
    """The page: no script, style, font or image from elsewhere.

    ``latency`` names the devices whose page stands beside it, with the record and the theorems, to link to them; None if none does.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        results=results,
        views=views,
        judged=judged,
        rules=rules,
        figures=shown,
        provenance=provenance(results),
        sides=sides,
        latency=latency,
        interval=claims.interval,
        isna=pd.isna,
    )


def provenance(results: tables.Results) -> list[dict[str, str]]:
    """What the finished seeds were run with: one line for each combination, with the number of runs."""
    names = ["commit", "dirty", "torch", "python", "device", "machine", "data_digest"]
    columns = {f"tag.{name}": name for name in names if f"tag.{name}" in results.seeds}
    if not columns:
        return []
    frame = results.seeds[list(columns)].rename(columns=columns).fillna("")
    counted = frame.groupby(list(columns.values()), sort=True).size().rename("runs").reset_index()
    return [{key: str(value) for key, value in line.items()} for line in counted.to_dict("records")]


def readme_block(top: dict[str, tables.View], sides: Sides, rules: claims.Claims, out: Path) -> str:
    """Profiles' main tables, as far as they were run, the verdicts on all profiles and the figure of most rows, as Markdown."""
    lines: list[str] = []
    rows = {
        name: [line for line, kind in zip(view.lines, view.kinds, strict=True) if kind == "ours"]
        for name, view in top.items()
    }
    for name, view in top.items():
        whole = f"[the whole table]({(out / name / f'{view.table}.md').as_posix()})"
        lines += [
            f"**{tables.unmarked(view.title)}** (profile `{name}`, n seeds in the last column; {len(rows[name])} rows of {whole})",
            "",
        ]
        lines += [*tables.markdown_table(replace(view, lines=rows[name])), ""]
        notes = [f"{tables.unmarked(note)}  " for note in view.notes if f"{tables.unmarked(note)}  " not in lines]
        lines += [*notes, ""] if notes else []
    lines += [
        "| claim | " + " | ".join(f"on `{name}`" for name in sides.judged) + " |",
        "|---" * (1 + len(sides.judged)) + "|",
    ]
    for claim in rules.claim:
        found = [judged[claim.id] for judged in sides.judged.values()]
        verdicts = " | ".join(f"{one.said}: {one.tally}" if "," in one.tally else one.said for one in found)
        lines.append(f"| {claim.id}: {tables.unmarked(claim.title)} | {verdicts} |")
    most = max(top, key=lambda name: len(rows[name]))
    figure = out / most / "figures" / README_FIGURE
    if files.newest(figure):
        lines += ["", f"![Accuracy against latency, profile {most}]({figure.as_posix()})"]
    return "\n".join([*lines, ""])


def update_readme(path: Path, block: str) -> None:
    """Replace what stands between the two markers.

    Raises:
        SpecError: the file does not hold both markers, once each and in order.
    """
    text = (files.newest(path) or path).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SpecError(f"{path} must hold the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    files.write_text(path, f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}")
