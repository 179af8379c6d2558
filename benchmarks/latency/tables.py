"""``results/latency-<device>.csv``, ``.md`` and the roofline figure: a pure function of the store's latest run on each device.

A CPU's are named after its vectors, too (``latency-cpu-avx2``): what a step costs depends on them more than on anything else.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.data.images import TOGETHER
from benchmarks.files import write_text
from benchmarks.latency.record import RECORD
from benchmarks.report import figures
from benchmarks.store import Store, StoreError

NO_GPU = "not run: no GPU"
BEYOND_L2 = 1 << 28  # bytes of an input that no L2 cache holds a part of worth counting
SIZES = 1 << 18  # neurons from which on the scaling is fitted: below it the call, not the pass over memory, is timed
COLUMNS = ["kind", "mode", "architecture", "width", "batch", "size", "L", "T", "dtype", "N", "input_bytes", "contender"]
COLUMNS += [
    "backend",
    "rounds",
    "p50_ms",
    "p95_ms",
    "peak_mb",
    "gb_s",
    "times_floor",
    "times_fused",
    "times_relu",
    "status",
]
VARIANTS = {  # networks, as they are named in the tables; the naive and the SpikingJelly network they are compared with
    "relu": ("ReLU ANN", None, None),
    "qcfs": ("QCFS ANN", None, None),
    "if": ("IF, {one} steps", None, "spikingjelly-if"),
    "lmht": ("LM-HT", "lmht-naive", "spikingjelly-ilif"),
    "reparameterised": ("reparameterised, {one} steps", None, None),
}


@dataclass(frozen=True)
class Run:
    """One device's run: params, and one line for each contender of each case."""

    params: dict[str, str]
    lines: pd.DataFrame
    profiles: dict[str, dict[str, dict[str, float]]]

    @property
    def name(self) -> str:
        """The device, of a CPU with the vectors that torch uses there."""
        device, vectors = self.params["device"], self.params["vectors"]
        return f"{device}-{vectors.lower()}" if device == "cpu" else device

    @property
    def halves_are_slow(self) -> bool:
        """Whether a processor without instructions for bfloat16 computes it by detours: its ratios then say little of the code."""
        ms = [self.ratio("relu", "p50_ms", **WHOLE_STEP, dtype=dtype) for dtype in ("bfloat16 (autocast)", "float32")]
        return ms[0] > ms[1]

    def neurons(self, mode: str, **wanted: Any) -> pd.DataFrame:
        """Measured lines of a neuron mode, by contender; ``wanted`` are columns and their values."""
        found = self.lines[(self.lines["kind"] == "neuron") & (self.lines["mode"] == mode)]
        for column, value in wanted.items():
            found = found[found[column] == value]
        return found

    def ratio(self, contender: str, column: str, **wanted: Any) -> float:
        """One ratio of one case, NaN if it was not measured."""
        found = self.lines[self.lines["contender"] == contender]
        for key, value in wanted.items():
            found = found[found[key] == value]
        return float(found[column].iloc[0]) if len(found) == 1 else math.nan


@dataclass(frozen=True)
class Aim:
    """What the project set out to reach; ``at_most`` says on which side of the bound is good.

    Not ``judged``: how it is computed was settled after a result had been seen, so it describes and does not judge.
    """

    text: str
    value: Callable[[Run], float]
    bound: float
    at_most: bool = True
    judged: bool = True

    def line(self, run: Run) -> str:
        value = self.value(run)
        if math.isnan(value):
            return f"| {self.text} | {self.limit} | | not measured |"
        if "bfloat16" in self.text and run.halves_are_slow:
            return f"| {self.text} | {self.limit} | {value:.3g} | says nothing, see below |"
        met = value <= self.bound if self.at_most else value >= self.bound
        verdict = ("met" if met else "not met") if self.judged else "description, see below"
        return f"| {self.text} | {self.limit} | {value:.3g} | {verdict} |"

    @property
    def limit(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


def write(store: Store, out: Path) -> None:
    """Write the files of each device that has a run; where nothing was ever run on a GPU, its files say so.

    Raises:
        StoreError: the store can't be read.
    """
    gpu = out / "latency-cuda"
    if not gpu.with_suffix(".md").exists():
        frame = pd.DataFrame([{"status": NO_GPU}], columns=COLUMNS)
        write_text(gpu.with_suffix(".csv"), frame.to_csv(index=False))
        text = f"# Latency, cuda\n\n{NO_GPU}. `tox run -e gpu` on a machine with one fills this page.\n"
        write_text(gpu.with_suffix(".md"), text)
    for device in ("cpu", "cuda"):
        run = load(store, device)
        if run is None:
            continue
        path = out / f"latency-{run.name}"
        write_text(path.with_suffix(".csv"), run.lines[COLUMNS].to_csv(index=False, float_format="%.4g"))
        write_text(path.with_suffix(".md"), page(run, device))
        with matplotlib.rc_context(figures.STYLE):
            figures.save(roofline(run), out / "figures", f"roofline-{run.name}")


def load(store: Store, device: str) -> Run | None:
    with tempfile.TemporaryDirectory() as folder:
        found = store.latency(device, RECORD, Path(folder))
        if found is None:
            return None
        params, file = found
        if "vectors" not in params:
            raise StoreError(
                f"the latency run on {device} in the store is of an older version: `run latency --device {device}` measures again"
            )
        record = json.loads(file.read_text())
    return Run(params, frame(record), record["latency"]["profiles"])


def frame(record: dict[str, Any]) -> pd.DataFrame:
    """One line for each contender of each case: figures, or the reason why there are none."""
    lines, cases = [], {}
    for benchmark in record["benchmarks"]:
        one = dict(benchmark["extra_info"])
        ratios = one.pop("ratios")
        cases[one["case"]] = {
            k: v for k, v in one.items() if k not in ("contender", "p50", "p95", "peak_bytes", "faults")
        }
        one |= {f"times_{other}": ratios.get(other) for other in ("floor", "fused", "relu", "lmht", "if")}
        one |= {"p50_ms": one["p50"] * 1e3, "p95_ms": one["p95"] * 1e3, "peak_mb": one["peak_bytes"] / 1e6}
        if one["kind"] == "neuron":
            one["gb_s"] = one["moved_bytes"] / one["p50"] / 1e9
        lines.append(one | {"rounds": benchmark["stats"]["rounds"], "status": "measured"})
    for name, reason in record["latency"]["left_out"].items():
        case = next((case for case in cases if name.startswith(f"{case}-")), None)
        if case:
            lines.append(cases[case] | {"contender": name.removeprefix(f"{case}-"), "status": f"no figure: {reason}"})
    found = pd.DataFrame(lines)
    found = found.reindex(columns=[*COLUMNS, "case", "times_lmht", "times_if", "peak_bytes", "faults", "normalised"])
    whole = ["L", "T", "N", "batch", "size", "rounds", "input_bytes", "peak_bytes", "faults", "normalised"]
    return found.astype(dict.fromkeys(whole, "Int64"))


# The page -----------------------------------------------------------------------------------------------------------------


def page(run: Run, device: str) -> str:
    p = run.params
    quick = (
        ["**Quick run: tiny sizes, to try the harness; nothing here is a result.**", ""] if p["quick"] == "True" else []
    )
    head = [f"# Latency, {run.name}", "", *quick]
    if said := answer(run):
        head += [said, ""]
    head += [
        f"{p['device_name']}; {p['machine']}; {p['threads']} threads; torch {p['torch']}, Python {p['python']}; SpikingJelly "
        f"{p['spikingjelly']}; commit {p['commit'][:12]}{', with uncommitted changes' if p['dirty'] == 'True' else ''}; "
        f"{p['measured']}. `python -m benchmarks report latency` writes this page from the store.",
        "",
        "Contenders of a case are timed in one run, in turn, round by round; a ratio is the median over the rounds of two times "
        "of one round. *Floor*: a copy of the bytes that must move, `x.clone()` forward (1 read, 1 write), `torch.add(x, grad)` "
        "backward (2 reads, 1 write); all sides allocate their results afresh and free them. *Naive*: `lmht.functional`, "
        "eager. *SpikingJelly*: `IFNode` at L = 1, else `ILIFNode`, on the backend it chooses; it has no T-GIM, so it computes "
        "less. GB/s: the floor's bytes by the time. *Peak*: allocated above input and incoming gradient; 2.00 inputs are output "
        "and gradient. A figure of a fused backend exists only where its outputs and gradients equal the naive ones in float64.",
        "",
    ]
    body = [*aims(run, device), *step_tables(run), *bounds(run), *neuron_tables(run), *network_tables(run)]
    body += profile_tables(run)
    return "\n".join([*head, *body]).rstrip() + "\n"


def answer(run: Run) -> str:
    """What a reader wants to know, from what was measured."""
    found = [aim.value(run) for aim in AIMS["cpu"][:2]]
    parts = [f"{found[0]:.3g} times faster than naive", f"{found[1]:.3g} times the memory floor"]
    if any(map(math.isnan, found)):
        parts = []
    for dtype in ("float32", "bfloat16 (autocast)")[: 1 if run.halves_are_slow else 2]:
        steps = [run.ratio(name, "times_relu", **WHOLE_STEP, dtype=dtype) for name in STEPPED]
        if not any(map(math.isnan, steps)):
            parts.append(
                "a {} step of ResNet-20 costs {:.3g} (QCFS), {:.3g} (T = 2) and {:.3g} (T = 4) ANN steps".format(
                    dtype.split()[0], *steps
                )
            )
    return f"**{'; '.join(parts)}.**" if parts else ""


def aims(run: Run, device: str) -> list[str]:
    lines = ["## Aims", "", *heading("aim", "bound", "measured", "")]
    lines += [*(aim.line(run) for aim in [*AIMS[device], *SCALING]), ""]
    if run.halves_are_slow:
        lines += [
            "This processor has no instructions for bfloat16: a step takes longer in it than in float32, almost all of it in the "
            "convolutions, so what a step costs by the ANN's says nothing of the rest.",
            "",
        ]
    return [*lines, *scaling_notes(run)]


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(*names: str) -> list[str]:
    return [row(names), "|" + "---|" * len(names)]


def neuron_tables(run: Run) -> list[str]:
    lines = ["## LM-HT neuron", "", "N neurons, T steps, L levels; Omega and lambda trained.", ""]
    neurons = run.lines[run.lines["kind"] == "neuron"]
    columns = ["N", "T", "L", "backend", "p50 ms", "p95 ms", "GB/s", "÷ floor", "naive ÷ fused", "SpikingJelly ÷ fused"]
    for (dtype, mode), group in neurons.groupby(["dtype", "mode"], sort=False):
        lines += [f"### {mode}, {dtype}", "", *heading(*columns, "peak, inputs", "rounds")]
        for (n, steps, levels), case in group.groupby(["N", "T", "L"]):
            by = case.set_index("contender")
            fused = by.loc["fused"]
            cells = [f"{n:,}", steps, levels, fused["backend"]]
            if fused["status"] != "measured":
                lines.append(row([*cells, fused["status"], *[""] * 7]))
                continue
            cells += [figure(fused[name]) for name in ("p50_ms", "p95_ms", "gb_s", "times_floor")]
            cells += [compared(by, name, "times_fused", run) for name in ("naive", "spikingjelly")]
            lines.append(row([*cells, f"{fused['peak_bytes'] / fused['input_bytes']:.2f}", fused["rounds"]]))
        lines.append("")
    return lines


def step_tables(run: Run) -> list[str]:
    """Whole steps, all activations and both T in one run."""
    steps = run.lines[run.lines["kind"] == "step"]
    if steps.empty:
        return []
    about = {
        "cpu": "Page faults, 4 KiB each: memory that the C library had given back to the system and has to get, cleared, again. "
        "`MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` above a step's memory keep it.",
        "cuda": "Every operator is launched by itself, as PyTorch does unless told otherwise. Where T = 4 costs no more than "
        "T = 2, the GPU waits for launches, not for arithmetic; so `python -m benchmarks run` replays the passes of a batch as "
        "one CUDA graph.",
    }
    lines = ["## Whole steps", "", about[run.params["device"]], ""]
    names = {"relu": "ReLU ANN", "qcfs": "QCFS ANN", "lmht": "LM-HT, T = 2", "lmht-T4": "LM-HT, T = 4"}
    names |= {"lmht-evaluated": "LM-HT, T = 2, and its predictions"}
    names |= {"spikingjelly-ilif": "SpikingJelly's ILIF, T = 2"}
    steps = steps[steps["contender"] != "augmentation"]
    for (architecture, mode), group in steps.groupby(["architecture", "mode"], sort=False):
        one = group.iloc[0]
        lines += [f"### {architecture}, {mode}, {one['batch']} x {one['size']}², L = {one['L']}, channels_last", ""]
        lines += heading(
            "dtype", "activation", "images/s", "p50 ms", "p95 ms", "÷ ANN", "peak MB", "page faults", "rounds"
        )
        for (dtype, name), case in group.groupby(["dtype", "contender"], sort=False):
            case = case.iloc[0]
            if case["status"] != "measured":
                lines.append(row([dtype, names[name], case["status"], *[""] * 6]))
                continue
            cells = [case["batch"] / case["p50_ms"] * 1e3, case["p50_ms"], case["p95_ms"], case["times_relu"]]
            lines.append(
                row([dtype, names[name], *map(figure, [*cells, case["peak_mb"]]), case["faults"], case["rounds"]])
            )
        lines.append("")
    return lines


# Of a step: title, T, and how often an element is read or written between two convolutions, in inference and in training.
PASSES = {
    "relu": ("ReLU ANN", 1, {"inference": 4, "training step": 14}),
    "qcfs": ("QCFS ANN", 1, {"inference": 2, "training step": 10}),
    "lmht": ("LM-HT, T = 2", 2, {"inference": 2, "training step": 10}),
    "lmht-T4": ("LM-HT, T = 4", 4, {"inference": 2, "training step": 10}),
}
MOVING = ("normal", "neuron", "ReLU")  # groups of operators that do little else than move memory


def bounds(run: Run) -> list[str]:
    """What a step can't be faster than: its convolutions, and the bytes that the rest moves at the speed of a copy."""
    copies = {
        place: run.neurons("forward+backward", contender="floor", dtype="float32", L=2, **at)["gb_s"].dropna()
        for place, at in (("within", {"N": 1 << 18, "T": 1}), ("beyond", {"N": 1 << 22, "T": 2}))
    }
    steps = [case for case in run.profiles if case.startswith("step-")]
    if run.params["device"] != "cpu" or not steps or any(len(found) != 1 for found in copies.values()):
        return []
    within, beyond = (float(found.iloc[0]) for found in copies.values())
    lines = ["## What bounds a step", ""]
    lines.append(
        "From the profiles at the end. A convolution over T steps is T times the ANN's arithmetic. What stands between two "
        "convolutions (normalisation, ReLU or neuron) does little else than move memory: of each element an ANN reads or "
        "writes 14 in a training step and 4 in inference, the fused pass 10 and 2. *GB/s*: these bytes by the time they take; "
        f"a copy has {within:.3g} GB/s where all of it stays in a cache and {beyond:.3g} beyond, and LM-HT's tensors are T times "
        "the ANN's. *At a copy's speed*: the step if that part took no longer than a copy beyond the caches, by the ANN's step "
        "as it is. *Convolutions*: by the ANN's step, what would be left if all else were free."
    )
    lines.append("")
    columns = ("activation", "convolutions ÷ ANN's", "between them, ms", "MB", "GB/s", "step ÷ ANN")
    for case in steps:
        found = run.profiles[case]
        one = run.lines[run.lines["case"] == case].iloc[0]
        element = one["normalised"] * (4 if one["dtype"] == "float32" else 2) / 1e6  # MB for one access to each
        lines += [f"### {one['architecture']}, {one['mode']}, {one['dtype']}", ""]
        lines += heading(*columns, "at a copy's speed", "convolutions")
        ann = sum(found["relu"].values())
        for name, (title, steps_, passes) in PASSES.items():
            if name not in found:
                continue
            groups = found[name]
            convolutions = sum(ms for group, ms in groups.items() if group.startswith("convolution"))
            moving = sum(ms for group, ms in groups.items() if group.startswith(MOVING))
            first = sum(ms for group, ms in found["relu"].items() if group.startswith("convolution"))
            moved, whole = passes[one["mode"]] * steps_ * element, sum(groups.values())
            cells = [convolutions / first, moving, moved, moved / moving, whole / ann]
            cells += [(whole - moving + moved / beyond) / ann, convolutions / ann]
            lines.append(row([title, *map(figure, cells)]))
        lines.append("")
    return lines


def network_tables(run: Run) -> list[str]:
    networks = run.lines[run.lines["kind"] == "network"]
    if networks.empty:
        return []
    first = networks.iloc[0]
    lines = [
        "## Networks",
        "",
        f"LM-HT at L = {first['L']}, T = {first['T']}, {first['dtype']}, channels_last, random images; a training step is "
        "forward, cross-entropy, backward, SGD. ÷ ANN: by the ReLU ANN's time, which is a network's floor.",
        "",
    ]
    columns = ["network", "width, images", "variant", "p50 ms", "p95 ms", "÷ ANN", "÷ ANN ÷ steps", "naive ÷ fused"]
    for mode, group in networks.groupby("mode", sort=False):
        lines += [f"### {mode}", "", *heading(*columns, "SpikingJelly ÷ fused", "peak MB", "rounds")]
        for _, case in group.groupby("case", sort=False):
            by = case.set_index("contender")
            for name, (title, naive, jelly) in VARIANTS.items():
                if name not in by.index:
                    continue
                one = by.loc[name]
                many = one["L"] * one["T"]
                steps = {"relu": 1, "qcfs": 1, "lmht": one["T"]}.get(name, many)
                images = f"{one['width']:g}, {one['batch']} x {one['size']}²"
                cells = [one["architecture"], images, title.format(one=many)]
                if one["status"] != "measured":
                    lines.append(row([*cells, one["status"], *[""] * 7]))
                    continue
                cells += [figure(one[column]) for column in ("p50_ms", "p95_ms", "times_relu")]
                cells.append(figure(one["times_relu"] / steps))
                cells += [compared(by, other, f"times_{name}", run) if other else "" for other in (naive, jelly)]
                lines.append(row([*cells, figure(one["peak_mb"]), one["rounds"]]))
        lines.append("")
    return lines


def profile_tables(run: Run) -> list[str]:
    """Where a step's time goes: what bounds the SNN."""
    lines = []
    names = {"relu": "ReLU ANN", "qcfs": "QCFS ANN", "lmht": "LM-HT", "lmht-T4": "LM-HT, T = 4"}
    for case, found in run.profiles.items():
        if not {"relu", "lmht"} <= set(found):
            continue
        shown = [name for name in names if name in found]
        lines += [f"## Where the time goes: {case.removeprefix('network-')}", ""]
        lines += ["torch.profiler, ms a call; the profiler itself slows small operators.", ""]
        lines += heading("operators", *(names[name] for name in shown), "LM-HT ÷ ANN", "share of LM-HT")
        whole = {name: sum(found[name].values()) for name in shown}
        for group in (*found["lmht"], "all"):
            times = {name: whole[name] if group == "all" else found[name][group] for name in shown}
            if any(times.values()):
                ratio = figure(times["lmht"] / times["relu"]) if times["relu"] else ""
                lines.append(row([group, *map(figure, times.values()), ratio, f"{times['lmht'] / whole['lmht']:.0%}"]))
        lines.append("")
    return lines


def compared(by: pd.DataFrame, other: str, column: str, run: Run) -> str:
    if other not in by.index:
        version = run.params["spikingjelly"]
        return version if "spikingjelly" in other and version == "not installed" else ""
    line = by.loc[other]
    return figure(line[column]) if line["status"] == "measured" else str(line["status"]).removeprefix("no figure: ")


def figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


# Aims ---------------------------------------------------------------------------------------------------------------------


def large(run: Run, column: str, contender: str, worst: Callable[[pd.Series], float], **wanted: Any) -> float:
    """The worst value of a ratio over all neuron cases beyond the L2 cache."""
    found = pd.concat([run.neurons(mode, contender=contender, **wanted) for mode in ("forward", "forward+backward")])
    values = found.loc[found["input_bytes"] >= BEYOND_L2, column].dropna()
    return float(worst(values)) if len(values) else math.nan


def exponent(run: Run, axis: str, contender: str) -> float:
    """Of the power law of forward+backward's time in N at T = 2, or in T at the largest N that every T has; least squares.

    In N it is that of the time beyond a call's own, which is the time at the smallest N.
    """
    found = run.neurons("forward+backward", contender=contender, L=2, dtype="float32").dropna(subset=["p50_ms"])
    ms = found["p50_ms"]
    if axis == "N":
        found = found[found["T"] == 2].sort_values("N")
        ms = found["p50_ms"] - found["p50_ms"].min()
        found, ms = found[found["N"] >= SIZES], ms[found["N"] >= SIZES]
    else:
        found = found[found["N"] == shared(found)]
        ms = found["p50_ms"]
    if found[axis].nunique() < 3 or (ms <= 0).any():
        return math.nan
    return float(np.polyfit(np.log(found[axis].astype(float)), np.log(ms), 1)[0])


def shared(found: pd.DataFrame) -> int:
    """The largest N that was measured at the most values of T."""
    counts = found.groupby("N")["T"].nunique()
    return int(counts[counts == counts.max()].index.max()) if len(counts) else 0


def growth(run: Run) -> float:
    """Of forward+backward's peak memory with the input, between the two largest N; the worst over T and dtypes."""
    found = run.neurons("forward+backward", contender="fused", L=2).dropna(subset=["p50_ms"]).sort_values("N")
    slopes = []
    for _, sizes in found.groupby(["T", "dtype"]):
        if len(sizes) > 1:
            (a, b), (c, d) = sizes[["input_bytes", "peak_bytes"]].iloc[-2:].astype(float).to_numpy()
            slopes.append((d - b) / (c - a))
    return max(slopes, default=math.nan)


CPU_CASE = {"kind": "neuron", "mode": "forward+backward", "L": 2, "T": 2, "dtype": "float32", "N": 1 << 22}
STEP = {"kind": "network", "mode": "training step"}
WHOLE_STEP = {"kind": "step", "mode": "training step", "architecture": "ResNet-20"}
STEPPED = {"qcfs": ("QCFS", 1.1), "lmht": ("LM-HT, T = 2", 2.0), "lmht-T4": ("LM-HT, T = 4", 4.0)}


def step_aim(mode: str, dtype: str, name: str) -> Aim:
    title, bound = STEPPED[name]
    wanted = WHOLE_STEP | {"mode": mode, "dtype": dtype}
    text = f"ResNet-20, {mode}, {dtype}, channels_last: {title} ÷ ReLU ANN"
    return Aim(text, lambda run: run.ratio(name, "times_relu", **wanted), bound)


WHOLE_STEPS = [
    step_aim(mode, dtype, name)
    for mode in ("training step", "inference")
    for dtype in ("float32", "bfloat16 (autocast)")
    for name in STEPPED
]
EVALUATION = Aim(
    "ResNet-20, inference, float32, T = 2: with the harness's predictions ÷ without",
    lambda run: run.ratio("lmht-evaluated", "times_lmht", **WHOLE_STEP | {"mode": "inference", "dtype": "float32"}),
    1.05,
)


def augmentation(run: Run, dtype: str) -> float:
    """Its time by a ReLU ANN's step, for as many images."""
    found = run.lines[(run.lines["kind"] == "step") & (run.lines["dtype"] == dtype)]
    batch = float(found["batch"].iloc[0]) if len(found) else math.nan
    return run.ratio("augmentation", "times_relu", kind="step", dtype=dtype) * batch / TOGETHER


AUGMENTATION = [
    Aim(
        f"CIFAR's augmentation of a batch, by the process that trains ÷ a ReLU ANN's training step of ResNet-20, {dtype}",
        partial(augmentation, dtype=dtype),
        0.05,
    )
    for dtype in ("float32", "bfloat16 (autocast)")
]
JELLY_STEP = Aim(
    "ResNet-20, training step, float32, T = 2: SpikingJelly's multi-level neuron ÷ LM-HT",
    lambda run: run.ratio("spikingjelly-ilif", "times_lmht", **WHOLE_STEP, dtype="float32"),
    3,
    False,
)
AIMS = {
    "cpu": [
        Aim(
            "neuron forward+backward, [T=2, 64, 64, 32, 32], L = 2, float32: naive ÷ fused",
            lambda run: run.ratio("naive", "times_fused", **CPU_CASE),
            10,
            False,
        ),
        Aim("the same: fused ÷ floor", lambda run: run.ratio("fused", "times_floor", **CPU_CASE), 2),
        *WHOLE_STEPS,
        EVALUATION,
        *AUGMENTATION,
        JELLY_STEP,
    ],
    "cuda": [
        Aim(
            "neuron beyond the L2 cache, float32, forward and forward+backward: floor ÷ fused",
            lambda run: large(run, "times_fused", "floor", min, dtype="float32"),
            0.85,
            False,
        ),
        Aim("the same in bfloat16", lambda run: large(run, "times_fused", "floor", min, dtype="bfloat16"), 0.85, False),
        Aim("naive ÷ fused there", lambda run: large(run, "times_fused", "naive", min), 10, False),
        Aim(
            "SpikingJelly's multi-level neuron ÷ fused there, T = 2",
            lambda run: large(run, "times_fused", "spikingjelly", min, T=2, L=2),
            2,
            False,
        ),
        Aim("the same, T = 4", lambda run: large(run, "times_fused", "spikingjelly", min, T=4, L=2), 2, False),
        Aim(
            "ResNet-18 training step at T = 2: LM-HT ÷ ReLU ANN",
            lambda run: run.ratio("lmht", "times_relu", architecture="ResNet-18", **STEP),
            2.3,
        ),
        Aim(
            "the same: naive neurons ÷ fused",
            lambda run: run.ratio("lmht-naive", "times_lmht", architecture="ResNet-18", **STEP),
            2.5,
            False,
        ),
    ],
}
SCALING = [
    Aim("memory of forward+backward that grows with the input, in inputs (output and gradient: 2)", growth, 2.01),
    Aim(
        "cost in N at T = 2, beyond a call's own: exponent", lambda run: exponent(run, "N", "fused"), 1.1, judged=False
    ),
    Aim("cost in T at the largest N: exponent", lambda run: exponent(run, "T", "fused"), 1.25),
    Aim(
        "the same, less the floor's exponent",
        lambda run: exponent(run, "T", "fused") - exponent(run, "T", "floor"),
        0.25,
        judged=False,
    ),
]


def scaling_notes(run: Run) -> list[str]:
    """What a step costs at each T, in parts: where the cost in T comes from."""
    lines = [
        f"Exponents are of forward+backward, float32, L = 2; in N from {SIZES:,} neurons on, beyond a call's own cost. The "
        f"floor's: {exponent(run, 'N', 'floor'):.3g} in N, {exponent(run, 'T', 'floor'):.3g} in T; the naive form's in T: "
        f"{exponent(run, 'T', 'naive'):.3g}.",
        "",
        "The bounds on memory and on the exponents are set by this harness. Two rows judge nothing, as they were defined after "
        "results had been seen: the exponent in N takes out a call's own cost since a first run on a CPU gave 0.69 without that, "
        "and the exponent in T less the floor's came in after two runs in which the floor's own was 1 and 1.9: large new tensors "
        "cost more than their bytes.",
        "",
    ]
    both = run.neurons("forward+backward", L=2, dtype="float32").dropna(subset=["p50_ms"])
    n = shared(both[both["contender"] == "fused"])
    lines += [
        f"Parts of the cost in T at N = {n:,}, float32, L = 2, ms, by difference of medians (a negative part is noise):",
        "",
    ]
    lines += heading("T", "forward", "backward, dx alone", "gradients of Omega and lambda, T² + T sums", "all", "floor")
    forward = run.neurons("forward", L=2, dtype="float32", N=n, contender="fused").set_index("T")["p50_ms"]
    for steps, case in both[both["N"] == n].groupby("T"):
        ms = case.set_index("contender")["p50_ms"]
        if {"fused", "fused-dx", "floor"} <= set(ms.index) and steps in forward.index:
            parts = [forward[steps], ms["fused-dx"] - forward[steps], ms["fused"] - ms["fused-dx"]]
            lines.append(row([steps, *map(figure, [*parts, ms["fused"], ms["floor"]])]))
    return [*lines, ""]


# The figure ---------------------------------------------------------------------------------------------------------------


def roofline(run: Run) -> Figure:
    """Achieved GB/s against size under the measured copy as roof; cost against N and against T."""
    sketch, axes = figures.panels(2, 2, 9, 6.4)
    for ax, mode in zip(axes, ("forward", "forward+backward"), strict=False):
        for dtype, color in (("float32", figures.BLUE), ("bfloat16", figures.ORANGE)):
            found = run.neurons(mode, L=2, T=2, dtype=dtype).dropna(subset=["gb_s"]).sort_values("input_bytes")
            for contender, style in (("floor", "--"), ("fused", "o-"), ("naive", "x:"), ("spikingjelly", "^:")):
                part = found[found["contender"] == contender]
                name = "roof: measured copy" if contender == "floor" else contender
                if len(part):
                    ax.loglog(
                        part["input_bytes"].astype(float) / 1e6,
                        part["gb_s"],
                        style,
                        color=color,
                        ms=4,
                        lw=1.2,
                        label=f"{name}, {dtype}",
                    )
        ax.set(title=f"{mode}, L = T = 2", xlabel="input, MB", ylabel="GB/s of the bytes that must move")
        ax.set_ylim(bottom=ax.get_ylim()[0] / 100)  # room for the legend
    colors = dict(zip((1, 2, 4, 8), (figures.SKY, figures.BLUE, figures.GREEN, figures.RED), strict=True))
    found = run.neurons("forward+backward", L=2, dtype="float32").dropna(subset=["p50_ms"]).sort_values(["N", "T"])
    for steps, color in colors.items():
        part = found[(found["T"] == steps) & (found["contender"] == "fused")]
        if len(part):
            n, ms = part["N"].astype(float), part["p50_ms"]
            axes[2].loglog(n, ms, "o-", color=color, ms=4, lw=1.2, label=f"T = {steps}")
            axes[2].loglog(n, ms.iloc[-1] * n / n.iloc[-1], ":", color=color, lw=0.8)
    axes[2].set(
        title="Cost in N, fused, float32, L = 2 (dotted: linear)", xlabel="neurons N", ylabel="forward+backward, ms"
    )
    if n := shared(found[found["contender"] == "fused"]):
        for contender, color in (
            ("floor", figures.GREY),
            ("fused", figures.BLUE),
            ("naive", figures.RED),
            ("spikingjelly", figures.PINK),
        ):
            part = found[(found["N"] == n) & (found["contender"] == contender)]
            if len(part):
                axes[3].loglog(
                    part["T"].astype(float), part["p50_ms"], "o-", color=color, ms=4, lw=1.2, label=contender
                )
        axes[3].set(title=f"Cost in T, N = {n:,}, float32, L = 2", xlabel="time-steps T", ylabel="forward+backward, ms")
        axes[3].set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes[3].minorticks_off()
    places = (("lower center", 2), ("lower center", 2), ("upper left", 1), ("upper left", 1))
    options: dict[str, Any]
    for ax, (place, columns) in zip(axes, places, strict=True):
        options = {"fontsize": 6, "loc": place, "ncols": columns}
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**options)
    return sketch
