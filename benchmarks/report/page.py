"""Everything generated from a profile's runs, in one go: tables, verdicts, figures, ``report.html``, the README's block."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from benchmarks.report import claims, figures, tables
from benchmarks.spec import SpecError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
EQUATIONS = {
    "ri_curves": "Mean output against a current that is uniform in time (as Fig. 2d), L = T = 2, θ = ϑ/2.",
    "firing_regions": "Spikes, and where all steps fire alike, for a current that is uniform in time (as Fig. 1).",
}
README_FIGURE = "accuracy_latency"


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it."""

    name: str
    caption: str
    svg: Markup


def write(results: tables.Results, out: Path, readme: Path | None = None) -> None:
    """Write ``out/figures`` and ``out/<profile>``, and renew the README's block.

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
    (folder / "report.html").write_text(html(results, views, judged, rules, shown))
    if readme:
        update_readme(readme, readme_block(results, views["table1"], judged, folder, captions))


def inline(path: Path) -> Markup:
    """An SVG file as an element of a page."""
    svg = path.read_text()
    return Markup(svg[svg.index("<svg") :])


def html(
    results: tables.Results,
    views: dict[str, tables.View],
    judged: list[claims.JudgedClaim],
    rules: claims.Claims,
    shown: list[Figure],
) -> str:
    """The page: no script, style, font or image from elsewhere."""
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


def readme_block(
    results: tables.Results,
    view: tables.View,
    judged: list[claims.JudgedClaim],
    folder: Path,
    captions: dict[str, str],
) -> str:
    """Main table, verdicts and one figure, as Markdown."""
    lines = [f"**{view.title}** (profile `{results.name}`, n seeds in the last column)", ""]
    lines += [*tables.markdown_table(view), "", *(f"{note}  " for note in view.notes), ""]
    lines += ["| claim | verdict on this profile |", "|---|---|"]
    lines += [f"| {one.claim.id}: {one.claim.title} | {one.said} |" for one in judged]
    if README_FIGURE in captions:
        lines += ["", f"![{captions[README_FIGURE]}]({(folder / 'figures' / README_FIGURE).as_posix()}.svg)"]
    return "\n".join([*lines, ""])


def update_readme(path: Path, block: str) -> None:
    """Replace what stands between the two markers.

    Raises:
        SpecError: the file does not hold both markers, once each and in order.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SpecError(f"{path} must hold the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}")
