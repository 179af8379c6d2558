"""Figures: of the equations (no data), and of a profile's runs. Deterministic SVG: the same records give the same bytes."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.data import SIZES
from benchmarks.files import remove, written
from benchmarks.neurons import BLUE, GREEN, GREY, KINDS, ORANGE, PINK, RED, SKY
from benchmarks.report.tables import Results, half_width
from benchmarks.run.network import network_of
from benchmarks.spec import Cell, Row, load_spec, tables
from lmht import functional

STYLE: Any = {
    "svg.hashsalt": "lmht",
    "svg.fonttype": "none",  # text stays text: searchable, and a third of the size
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def write_equations(folder: Path) -> None:
    """The figures that need no run: firing regions (Fig. 1), R-I curves (Fig. 2d), the neuron at work."""
    with matplotlib.rc_context(STYLE):
        save(ri_curves(), folder, "ri_curves")
        save(firing_regions(), folder, "firing_regions")
        save(neuron(), folder, "neuron")


def write_runs(results: Results, folder: Path) -> dict[str, str]:
    """The figures of a profile's runs, each with its caption; those without any run are left out."""
    for stale in folder.glob("*.svg"):
        remove(stale)
    captions: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        for name, caption, figure in [
            *accuracy_against_sops(results),
            *accuracy_against_latency(results),
            *hybrid(results),
            *training_curves(results),
            *learned_tgim(results),
        ]:
            save(figure, folder, name)
            captions[name] = caption
    return captions


def save(figure: Figure, folder: Path, name: str) -> None:
    with written(folder / f"{name}.svg") as part:
        figure.savefig(part, metadata={"Date": None}, bbox_inches="tight", facecolor="white")


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, row by row, without pyplot's global state."""
    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


# Of the equations ---------------------------------------------------------------------------------------------------------


def ri_curves() -> Figure:
    """Mean output against a current that is uniform in time (Fig. 2d), L = T = 2, theta = 1/2, next to QCFS with 4 levels."""
    figure, (left, right) = panels(1, 2, 7.2, 3.1, sharey=True)
    levels, steps, theta = 2, 2, 0.5
    x = torch.linspace(-0.2, 1.6, 3601, dtype=torch.float64)
    uniform = torch.full((steps, steps), 1 / steps, dtype=torch.float64)

    def rate(omega: torch.Tensor, leak: float = 1.0, v0: float = theta / 2) -> torch.Tensor:
        return functional.lmht(x.expand(steps, -1), levels=levels, theta=theta, omega=omega, leak=leak, v0=v0).mean(0)

    staircase = functional.qcfs(x, levels=levels * steps, scale=1.0)
    shown: list[tuple[Axes, torch.Tensor, str, str, Any]] = [
        (left, staircase, GREEN, "QCFS, Tq = 4", {"lw": 5, "alpha": 0.4}),
        (left, rate(uniform), BLUE, "LM-HT, Ω = 1/T, v(0) = θ/2", {}),
        (left, rate(uniform, v0=0.0), ORANGE, "the same with v(0) = 0", {"ls": (0, (4, 2))}),
        (right, staircase, GREEN, "QCFS, Tq = 4", {"lw": 5, "alpha": 0.4}),
        (right, rate(1.5 * uniform), BLUE, "Ω = 1.5/T", {}),
        (right, rate(0.6 * uniform), RED, "Ω = 0.6/T", {}),
        (right, rate(uniform, leak=0.5), PINK, "Ω = 1/T, λ = 1/2", {}),
    ]
    for axes, y, color, name, style in shown:
        axes.plot(x, y, color=color, label=name, **({"lw": 1.5} | style))
    for axes, title in [(left, "Uniform T-GIM: the QCFS staircase"), (right, "Other T-GIMs and leaks bend it")]:
        axes.set(title=title, xlabel="current I, the same at every step (units of ϑ)")
        axes.legend(loc="lower right", fontsize=8)
    left.set_ylabel("mean output over T = 2 steps")
    return figure


def neuron() -> Figure:
    """One LM-HT neuron step by step, L = 2, T = 4: T-GIM, potential against two thresholds, and the same with one level."""
    levels, steps, theta = 2, 4, 1.0
    x = torch.tensor([2.0, 0.5, 0.25, 1.75], dtype=torch.float64)
    omega = torch.tensor(
        [[0.5, 0.25, 0, 0.25], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.5], [0.25, 0, 0.5, 0.75]]
    ).double()
    current = omega @ x
    spikes, after = functional.mht(current, levels=levels, theta=theta)
    before = after + spikes * theta
    one_level, _ = functional.integrate_and_fire(  # the charge of a step comes at the first of its L sub-steps
        torch.stack([current, torch.zeros_like(current)], 1).flatten(), theta=theta
    )
    assert torch.equal(one_level.unflatten(0, (steps, levels)).sum(1), spikes)

    with matplotlib.rc_context({"figure.constrained_layout.use": False}):  # its solver varies in the last bit
        figure = Figure(figsize=(10.4, 2.3))
    given, matrix, potential, binary = figure.subplots(1, 4, width_ratios=[1, 1.1, 1.5, 1.5])
    figure.subplots_adjust(wspace=0.3)
    t = np.arange(1, steps + 1)
    given.bar(t, x, color=GREY, width=0.6)
    given.set(title="input x(t)", xlabel="step t", xticks=t, ylabel="charge / θ")
    matrix.pcolormesh(omega, cmap="Blues", vmin=0, vmax=1.2)
    matrix.invert_yaxis()
    for i, j in itertools.product(range(steps), range(steps)):
        matrix.text(j + 0.5, i + 0.5, f"{float(omega[i, j]):g}", ha="center", va="center", fontsize=7)
    matrix.set(title="T-GIM: I = Ω x", xlabel="from step", ylabel="to step")
    matrix.set_xticks(t - 0.5, t)
    matrix.set_yticks(t - 0.5, t)
    potential.bar(t, before, color=SKY, width=0.6, label="before firing")
    potential.bar(t, after, color=BLUE, width=0.6, label="after the soft reset")
    for level in range(1, levels + 1):
        potential.axhline(level * theta, color=RED, lw=1, ls=(0, (4, 2)))
        potential.text(0.45, level * theta + 0.05, ("θ", "2θ")[level - 1], color=RED, fontsize=8)
    for step, count in zip(t, spikes, strict=True):
        potential.text(step, float(before[step - 1]) + 0.06, f"s = {int(count)}", ha="center", fontsize=8)
    potential.set(
        title="two thresholds: s in {0, 1, 2}", xlabel="step t", xticks=t, ylim=(0, 3.4), xlim=(0.4, steps + 0.6)
    )
    potential.legend(loc="upper left", fontsize=7)
    places = np.flatnonzero(one_level.numpy()) + 1
    binary.vlines(places, 0.1, 0.9, color=BLUE, lw=3)
    for edge in range(levels, levels * steps, levels):
        binary.axvline(edge + 0.5, color="#cccccc", lw=1)
    binary.set(title="one level, L·T = 8 steps", xlabel="sub-step", xticks=range(1, levels * steps + 1))
    binary.set(ylim=(0, 1), yticks=[], xlim=(0.4, levels * steps + 0.6))
    for axes in (matrix, binary):
        axes.grid(False)
    return figure


def firing_regions() -> Figure:
    """Where a current that is uniform in time gives the same spikes at every step (Fig. 1, Corollary 4.3)."""
    figure = Figure(figsize=(7.2, 4.2))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.25])
    levels, steps, edges = 2, 4, np.linspace(-0.5, 4.5, 2001)
    current = torch.as_tensor((edges[:-1] + edges[1:]) / 2)
    spikes, _ = functional.mht(current.expand(steps, -1), levels=levels, theta=1.0)
    for t, line in enumerate(spikes.numpy(), 1):
        for start, stop, count in runs_of(line):
            top.barh(t, edges[stop] - edges[start], left=edges[start], height=1, color=("#f2f2f2", SKY, BLUE)[count])
    for place, count, color in [(0.0, 0, GREY), (1.22, 1, "black"), (3.2, 2, "white")]:
        top.text(place, 2.5, f"{count} spikes" if count != 1 else "1 spike", color=color, ha="center", va="center")
    top.set(title="Spikes of M-HT, L = 2, T = 4, v(0) = 0", ylabel="time-step t", yticks=range(1, steps + 1))
    shown = [(1, 4, 0.0), (2, 2, 0.0), (2, 4, 0.0), (4, 2, 0.0), (2, 4, 0.5)]
    for y, (levels, steps, v0) in enumerate(reversed(shown)):
        spikes, _ = functional.mht(current.expand(steps, -1), levels=levels, theta=1.0, v0=v0)
        same = (spikes == spikes[0]).all(0).numpy()
        for start, stop, even in runs_of(same):
            bottom.barh(y, edges[stop] - edges[start], left=edges[start], height=0.7, color=BLUE if even else ORANGE)
    names = [f"L={levels}, T={steps}" + (", v(0)=θ/2" if v0 else "") for levels, steps, v0 in reversed(shown)]
    bottom.set(
        yticks=range(len(shown)), yticklabels=names, xlabel="current I / θ, the same at every step", xlim=(-0.5, 4.5)
    )
    bottom.set_title("Uniform firing (blue) and uneven firing (orange)")
    for axes in (top, bottom):
        axes.grid(False)
    return figure


def runs_of(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Start, stop and value of each run of equal values."""
    ends = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1), len(values)]
    for start, stop in itertools.pairwise(ends):
        yield int(start), int(stop), int(values[start])


# Of runs ------------------------------------------------------------------------------------------------------------------

Named = tuple[str, str, Figure]


def rows_of(results: Results, *tables: str) -> Iterator[tuple[str, Row, Cell]]:
    """Rows with finished seeds; rows that share a cell and a stage stand once."""
    seen = set()
    for table in tables:
        for row in load_spec(table).row:
            cell = results.cell(row)
            if cell is None or results.of_cell(cell).empty:
                continue
            key = cell.hash, row.stage, row.steps
            if key not in seen:
                seen.add(key)
                yield table, row, cell


def mean_and_ci(values: pd.Series) -> tuple[float, float]:
    """Mean and half of its 95 % confidence interval, 0 for one seed."""
    return float(values.mean()), half_width(values) if len(values) > 1 else 0.0


def shape_name(row: Row) -> str:
    kind = KINDS[row.neuron].title
    return f"{kind} T={row.steps}" if row.levels == 1 else f"{kind} L={row.levels} T={row.steps}"


def grid(count: int, columns: int = 2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure with room for so many panels; the rest is hidden."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = panels(rows, columns, 7.2 if columns > 1 else 4.5, height * rows + 0.3)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def accuracy_against_sops(results: Results) -> Iterator[Named]:
    """One panel a network: direct training, each neuron at its accuracy and its synaptic operations."""
    found: dict[tuple[str, str], dict[str, tuple[Row, pd.Series, pd.Series]]] = {}
    for table, row, cell in rows_of(results, *tables()):
        accuracy, sops = (results.values(table, row, name) for name in ("accuracy_pct", "sops_g"))
        if row.stage == "trained" and row.tq is None and KINDS[row.neuron].spiking and len(sops):
            found.setdefault((cell.architecture, cell.dataset), {}).setdefault(cell.hash, (row, accuracy, sops))
    if not found:
        return
    figure, axes = grid(len(found))
    for panel, ((architecture, dataset), cells) in zip(axes, found.items(), strict=True):
        rows = sorted(cells.values(), key=lambda one: one[2].mean())
        for k, (row, accuracy, sops) in enumerate(rows):
            (y, y_ci), (x, x_ci) = mean_and_ci(accuracy), mean_and_ci(sops * 1e3)
            color, marker = KINDS[row.neuron].color, KINDS[row.neuron].marker
            panel.errorbar(x, y, y_ci, x_ci, fmt=marker, color=color, ms=6, elinewidth=0.8, capsize=2)
            place: Any = {"xytext": (0, 7 if k % 2 else -8), "textcoords": "offset points", "fontsize": 7.5}
            place |= {"ha": "center", "va": "bottom" if k % 2 else "top", "color": darker(color)}
            place["bbox"] = {"fc": "white", "alpha": 0.7, "lw": 0, "pad": 0.5}
            panel.annotate(shape_name(row), (x, y), **place)
        panel.margins(x=0.2, y=0.2)
        keep_percent(panel)
        panel.set_xlim(left=max(0, panel.get_xlim()[0]))
        panel.set(title=f"{architecture} on {dataset}", xlabel="SOPs an image, millions", ylabel="test accuracy, %")
    yield "accuracy_sops", "Accuracy against synaptic operations; mean and 95 % CI over seeds.", figure


def accuracy_against_latency(results: Results) -> Iterator[Named]:
    """Table 4: QCFS converted to IF over T steps, LM-HT at the same number of one-level steps L*T, and the quantised ANN."""
    groups = hybrid_groups(results)
    if not groups:
        return
    figure, axes = grid(len(groups))
    for panel, ((architecture, tq, dataset), rows) in zip(axes, groups.items(), strict=True):
        converted = sorted((row for row in rows if row.stage == "converted"), key=lambda row: row.steps)
        points = [(row.steps, *mean_and_ci(results.values("table4", row, "accuracy_pct"))) for row in converted]
        if points:
            means = np.array(points)
            style: Any = {"fmt": "o-", "ms": 5, "capsize": 2, "label": "QCFS converted to IF, T = x"}
            panel.errorbar(means[:, 0], means[:, 1], means[:, 2], color=ORANGE, **style)
            ann = float(results.values("table4", converted[0], "ann_accuracy_pct").mean())
            panel.axhline(ann, color=GREEN, ls="--", lw=1.5, label="quantised ANN")
        for start, color, marker in [("exact", BLUE, "D"), ("algorithm1", RED, "X")]:
            tuned = [row for row in rows if row.start == start]
            for k, row in enumerate(tuned):
                y, ci = mean_and_ci(results.values("table4", row, "accuracy_pct"))
                x = row.levels * row.steps * (1 if row.levels == 2 else 1.06)
                name = f"LM-HT, L·T = x, {'exact start' if start == 'exact' else 'Algorithm 1'}" if k == 0 else None
                filled = color if row.levels == 2 else "white"
                panel.errorbar(x, y, ci, fmt=marker, color=color, mfc=filled, ms=7, capsize=2, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks([2, 4, 8], ["2", "4", "8"])
        panel.minorticks_off()
        keep_percent(panel)
        panel.set(title=f"{architecture}, Tq = {tq}, {dataset}", xlabel="one-level steps x", ylabel="test accuracy, %")
    legend_below(figure, axes, 2)
    yield (
        "accuracy_latency",
        "Accuracy against latency. Filled marks: L=2; open: L=4. Mean and 95 % CI over seeds.",
        figure,
    )


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend for all panels: what the first one lacks another may show."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8)


def hybrid_groups(results: Results) -> dict[tuple[str, int, str], list[Row]]:
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for _, row, cell in rows_of(results, "table4"):
        groups.setdefault((row.architecture, row.tq or 0, cell.dataset), []).append(row)
    return groups


def hybrid(results: Results) -> Iterator[Named]:
    """Table 4: accuracy right after the conversion and after fine-tuning, by initialisation, with plain IF conversion beside it."""
    groups = hybrid_groups(results)
    groups = {key: rows for key, rows in groups.items() if any(row.start for row in rows)}
    if not groups:
        return
    figure, axes = grid(len(groups))
    for panel, ((architecture, tq, dataset), rows) in zip(axes, groups.items(), strict=True):
        shapes = list(dict.fromkeys((row.levels, row.steps) for row in rows if row.start))
        for row in rows:
            after = float(results.values("table4", row, "accuracy_pct").mean())
            if row.start:
                y = shapes.index((row.levels, row.steps)) + (0.18 if row.start == "exact" else -0.18)
                before = float(results.values("table4", row, "before_finetuning_accuracy_pct").mean())
                color = BLUE if row.start == "exact" else RED
                panel.plot([before, after], [y, y], color=color, lw=1.5, alpha=0.6, zorder=1)
                name = "exact" if row.start == "exact" else "Algorithm 1"
                first = shapes.index((row.levels, row.steps)) == 0
                panel.scatter(before, y, s=32, ec=color, fc="white", label=f"{name}: converted" if first else None)
                panel.scatter(after, y, s=32, color=color, label=f"{name}: fine-tuned" if first else None)
                panel.axvline(
                    float(results.values("table4", row, "ann_accuracy_pct").mean()),
                    color=GREEN,
                    ls="--",
                    lw=1.2,
                    zorder=0,
                )
            for k, (levels, steps) in enumerate(shapes):
                if row.stage == "converted" and row.steps == levels * steps:
                    panel.scatter(after, k, s=60, marker="|", color=ORANGE, label="IF, L·T steps" if k == 0 else None)
        names = [f"L={levels} T={steps}" for levels, steps in shapes]
        panel.set(yticks=range(len(shapes)), yticklabels=names, ylim=(-0.6, len(shapes) - 0.4))
        panel.set(title=f"{architecture}, Tq = {tq}, {dataset}", xlabel="test accuracy, % (dashed: quantised ANN)")
        panel.set_xlim(right=min(102, panel.get_xlim()[1]))
    legend_below(figure, axes, 3)
    yield "hybrid", "Hybrid training: accuracy before and after fine-tuning; means over seeds.", figure


def training_curves(results: Results) -> Iterator[Named]:
    """Table 1's networks: test accuracy by epoch, mean over the seeds and the band between the lowest and the highest."""
    found: dict[tuple[str, str], list[tuple[Row, pd.DataFrame]]] = {}
    for _, row, cell in rows_of(results, "table1"):
        histories = [results.finished[cell.hash, seed].history["test"] for seed in results.of_cell(cell).index]
        curves = [pd.Series(history, range(1, len(history) + 1)) for history in histories]
        found.setdefault((row.architecture, cell.dataset), []).append((row, pd.concat(curves, axis=1)))
    if not found:
        return
    figure, axes = grid(len(found), height=3.0)
    for panel, ((architecture, dataset), rows) in zip(axes, found.items(), strict=True):
        last = max(curves.index[-1] for _, curves in rows)
        ends = []
        for row, curves in rows:
            mean, color = curves.mean(axis=1), KINDS[row.neuron].color
            panel.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=color, alpha=0.2, lw=0)
            panel.plot(curves.index, mean, color=color, lw=1.8)
            ends.append((float(mean.iloc[-1]), shape_name(row), color))
        low, high = panel.get_ylim()
        places = spread([end for end, _, _ in ends], (high - low) * 0.075)
        for (_, name, color), y in zip(ends, places, strict=True):
            panel.text(last * 1.02, y, name, color=darker(color), fontsize=8, va="center")
        panel.set_xlim(right=last * 1.42)
        panel.set_xticks([tick for tick in panel.get_xticks() if 0 <= tick <= last])
        panel.set(title=f"{architecture} on {dataset}", xlabel="epoch", ylabel="test accuracy, %")
    yield "training_curves", "Training curves; line: mean over seeds, band: lowest to highest seed.", figure


def spread(values: list[float], gap: float) -> list[float]:
    """The values, moved apart upwards so that no two are closer than the gap."""
    placed: dict[int, float] = {}
    for i in sorted(range(len(values)), key=values.__getitem__):
        placed[i] = max([values[i], *(place + gap for place in placed.values())])
    return [placed[i] for i in range(len(values))]


def learned_tgim(results: Results) -> Iterator[Named]:
    """Omega (times T: 1 is the uniform start) and leak of every layer, of the first seed."""
    wanted = {"ResNet-18": "table1", "ResNet-34": "table1", "VGG-13": "table3"}
    for architecture, table in wanted.items():
        rows = [
            (row, cell)
            for _, row, cell in rows_of(results, table)
            if row.neuron == "lmht" and row.architecture == architecture
        ]
        if not rows:
            continue
        row, cell = max(rows, key=lambda one: one[0].steps)
        seed = results.of_cell(cell).index[0]
        tgim = results.finished[cell.hash, seed].tgim
        if not tgim:
            continue
        with torch.device("meta"):  # the record's layers are sorted by name; here they stand in the network's order
            modules = [name for name, _ in network_of(cell, SIZES[cell.dataset]).named_modules()]
        layers = [tgim[name] for name in modules if name in tgim]
        name = architecture.lower().replace("-", "")
        caption = f"Learned T-GIM and leak: {architecture}, {shape_name(row)}, {cell.dataset}, seed {seed}."
        yield f"tgim_{name}", caption, heat_maps(layers, row.steps)


def heat_maps(layers: list[dict[str, Any]], steps: int) -> Figure:
    rows = -(-len(layers) // 9)
    columns = -(-len(layers) // rows)
    figure, axes = panels(rows, columns, 0.72 * columns + 0.9, 0.95 * rows + 0.5)
    omegas = [steps * np.array(layer["omega"]) for layer in layers]
    reach = max(0.1, max(float(np.abs(omega - 1).max()) for omega in omegas))
    for unused in axes[len(layers) :]:
        unused.set_visible(False)
    image = None
    for i, (panel, layer, omega) in enumerate(zip(axes, layers, omegas, strict=False), 1):
        leak = layer["leak"]
        image = panel.pcolormesh(omega[::-1], cmap="PuOr", vmin=1 - reach, vmax=1 + reach, ec="white", lw=0.5)
        panel.set_aspect("equal")
        panel.set_axis_off()
        panel.set_title(f"{i}\nλ {leak:.2f}", fontsize=7, fontweight="normal", loc="center")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
        bar.set_label(f"T·ω (T = {steps}; 1: uniform)", fontsize=8)
        bar.outline.set_visible(False)
    return figure


def keep_percent(panel: Axes) -> None:
    """No axis below 0 % or above 100 %, where an interval over few seeds may reach."""
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, -2), min(high, 103))


def darker(color: str) -> tuple[float, float, float]:
    """The colour at 70 %, for text on white."""
    red, green, blue = matplotlib.colors.to_rgb(color)
    return 0.7 * red, 0.7 * green, 0.7 * blue
