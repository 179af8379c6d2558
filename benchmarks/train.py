"""One cell, one seed: build the network, train it in one visible loop, evaluate. Knows nothing of MLflow.

:func:`run_cell` yields an :class:`Epoch` after every epoch and one :class:`Result` at the end.
"""

import contextvars
import copy
import itertools
import math
import os
import queue
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

import lmht
from benchmarks import data
from benchmarks.spec import Cell, NeuronSpec, Recipe
from lmht.conversion import to_if, to_lmht
from lmht.energy import count_operations
from lmht.graph import non_affine
from lmht.kernels import use_backend
from lmht.networks import Network, build
from lmht.reparameterize import foretell, reparameterize, repeat_frames

CONVERTED_STEPS = (2, 4, 8)  # the latencies of Table 4's QCFS conversions
COUNTED_IMAGES = 1024  # SOPs and reparameterisation in float64 are measured on the first test images, at most this many

LEAST_SCALE = 1e-2


class TrainingError(Exception):
    """Training went wrong in a way that more epochs won't mend."""


@dataclass(frozen=True)
class Epoch:
    """Progress after one epoch; accuracies in percent, loss in nats."""

    epoch: int
    epochs: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """Final metrics, and the checkpoint's path."""

    metrics: dict[str, float]
    checkpoint: Path
    data: dict[str, str]


def activation(spec: NeuronSpec, qcfs_scale: float) -> Callable[[], nn.Module]:
    """Activation factory. Direct training: ``theta = 2/L`` for L > 1 and 1 for L = 1, ``v(0) = 0`` (SPEC section 5)."""
    theta = 2 / spec.levels if spec.levels > 1 else 1.0
    factories: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "qcfs": lambda: lmht.QCFS(spec.levels, qcfs_scale),
        "if": lambda: lmht.IF(spec.steps, theta=theta),
        "lif": lambda: lmht.LIF(spec.steps, theta=theta),
        # only the one-level baseline keeps the temporal chain (SPEC section 2)
        "mht": lambda: lmht.MHT(spec.levels, spec.steps, theta=theta, temporal_gradient=False),
        "lmht": lambda: lmht.LMHT(spec.levels, spec.steps, theta=theta),
    }
    return factories[spec.kind]


class Shape(Protocol):
    """What a network needs to know of its data."""

    @property
    def classes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def frames(self) -> bool: ...


def network_of(cell: Cell, info: Shape) -> Network:
    """The cell's network before training, a fine-tuned cell's before its conversion."""
    origin = cell.ann or cell
    return build(
        cell.architecture,
        activation(origin.neuron, cell.qcfs_scale),
        classes=info.classes,
        steps=origin.neuron.steps,
        in_channels=info.in_channels,
        frames=info.frames,
        **cell.network,
    )


def run_cell(
    cell: Cell,
    seed: int,
    *,
    root: Path,
    device: str,
    out: Path,
    ann: Path | None = None,
    data_workers: int = 0,
    devices: int = 1,
) -> Iterator[Epoch | Result]:
    """Train and evaluate one cell with one seed.

    Args:
        root: where data sets lie.
        device: Fabric accelerator: ``cpu``, ``cuda`` or ``auto``.
        data_workers: processes that load data sets too large for memory.
        out: file to write the checkpoint to (the state of the last epoch).
        ann: checkpoint of ``cell.ann`` with the same seed, for a fine-tuned cell.
        devices: processes that share the training by DDP: each takes its part of every batch (and normalises over that part).

    Raises:
        data.DataError: a data set is missing or damaged.
        TrainingError: the loss is not finite.
    """
    if cell.threads:
        torch.set_num_threads(cell.threads)
    work = (cell, seed, root, device, out, ann, data_workers, devices)
    context = contextvars.copy_context()  # between two events the caller's own choice of backend holds
    events = _on_backend(work)
    try:
        while (event := context.run(next, events, None)) is not None:
            yield event
    finally:
        context.run(events.close)


def _on_backend(work: tuple[Any, ...]) -> Generator[Epoch | Result, None, None]:
    cell, devices = work[0], work[-1]
    with use_backend(cell.backend):
        yield from _train(*work) if devices == 1 else _in_processes(work, devices)


def _in_processes(work: tuple[Any, ...], devices: int) -> Iterator[Epoch | Result]:
    """One process a device; the first one's events are passed on."""
    spawn = torch.multiprocessing.get_context("spawn")
    events = spawn.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (work, devices, port, events), devices, join=False)
    try:
        while True:
            try:
                event = events.get(timeout=1)
            except queue.Empty:
                ranks.join(timeout=0)  # raises what a process raised
                continue
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Result):
                break
            yield event
        while not ranks.join():
            pass
        yield event
    finally:
        for process in ranks.processes:
            process.kill()


def _rank(rank: int, work: tuple[Any, ...], devices: int, port: int, events: Any) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cell: Cell = work[0]
    torch.set_num_threads(cell.threads or max(1, torch.get_num_threads() // devices))
    with use_backend(cell.backend):
        try:
            for event in _train(*work):
                if rank == 0:
                    events.put(event)
        except (data.DataError, TrainingError) as error:
            events.put(error)


def _train(
    cell: Cell, seed: int, root: Path, device: str, out: Path, ann: Path | None, data_workers: int, devices: int
) -> Iterator[Epoch | Result]:
    recipe = cell.recipe
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator=device, devices=devices, strategy=strategy, precision=recipe.precision)
    if devices > 1:
        fabric.launch()
    torch.manual_seed(seed)
    info = data.load(cell.dataset, root=root, steps=cell.neuron.steps, augment=recipe.augment)
    options: dict[str, Any] = {"seed": seed, "workers": data_workers, "device": fabric.device}
    train, val, test = data.loaders(info, recipe.batch_size, **options)
    if devices > 1:
        if recipe.batch_size % devices:
            raise TrainingError(f"a batch of {recipe.batch_size} can't be shared by {devices} devices; take a divisor")
        part = recipe.batch_size // devices
        train, _, _ = data.loaders(info, part, rank=fabric.global_rank, world=devices, **options)
    network, extra = network_of(cell, info), {}
    if cell.ann is not None:
        assert ann is not None, "a fine-tuned cell needs its quantised ANN's checkpoint"
        assert cell.start is not None
        network.load_state_dict(torch.load(ann, weights_only=True))
        network.to(fabric.device)
        source = network
        network = to_lmht(source, cell.neuron.levels, cell.neuron.steps, start=cell.start)
        extra = compare_with_ann(source, network, test, fabric.device, cell.float64_checks)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, recipe)
    model, optimizer = fabric.setup(network, optimizer)
    model.mark_forward_method("step_logits")
    forward = torch.compile(model) if recipe.compile else model

    scales = [m.scale for m in network.modules() if isinstance(m, lmht.QCFS)]
    batches = len(train)
    if recipe.epoch_images:
        batches = min(batches, math.ceil(recipe.epoch_images / recipe.batch_size))
    updates = math.ceil(batches / recipe.accumulate)
    schedule = cosine(recipe, updates)
    update, best_val, best = 0, -1.0, {"test/best_val": 0.0, "test/best": 0.0}
    for epoch in range(recipe.epochs):
        model.train()
        started, images, loss_sum = time.perf_counter(), 0, torch.zeros((), device=fabric.device)
        for i, (x, y) in enumerate(itertools.islice(train, batches)):
            x, y = fabric.to_device((x, y))
            last = (i + 1) % recipe.accumulate == 0 or i + 1 == batches
            with fabric.no_backward_sync(model, enabled=not last):
                loss = F.cross_entropy(forward(x), y, label_smoothing=recipe.label_smoothing)
                fabric.backward(loss / recipe.accumulate)
            if last:
                for group in optimizer.param_groups:
                    group["lr"] = schedule(update)
                optimizer.step()
                optimizer.zero_grad()
                keep_scales_positive(scales)
                update += 1
            loss_sum += loss.detach() * len(y)
            images += len(y)
        images *= devices
        total_loss = fabric.all_reduce(loss_sum, reduce_op="sum")
        assert isinstance(total_loss, Tensor)
        mean_loss = float(total_loss) / images
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"{cell.name}, seed {seed}: the loss is {mean_loss} in epoch {epoch + 1}; lower the learning rate"
            )
        seconds = time.perf_counter() - started
        val_accuracy, test_accuracy = (accuracy(*predict(model, split, fabric.device)) for split in (val, test))
        best["test/best"] = max(best["test/best"], test_accuracy)
        if val_accuracy > best_val:
            best_val, best["test/best_val"] = val_accuracy, test_accuracy
        metrics = {"loss": mean_loss, "val": val_accuracy, "test": test_accuracy, "images_per_s": images / seconds}
        yield Epoch(epoch + 1, recipe.epochs, metrics)

    if fabric.is_global_zero:
        network = model.module
        checkpoint = save(network, out)  # first: the evaluation needs more memory than training
        final = {"val/final": val_accuracy, **best, **extra}
        final |= evaluate(network, test, fabric.device, cell.float64_checks)
        yield Result(final, checkpoint, _describe(info))


@torch.no_grad()
def keep_scales_positive(scales: list[nn.Parameter]) -> None:
    """Project QCFS's ``vartheta`` onto ``>= LEAST_SCALE``: its gradient sums over a layer, and an early step can overshoot."""
    for scale in scales:
        scale.clamp_(min=LEAST_SCALE)


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def cosine(recipe: Recipe, updates_per_epoch: int) -> Callable[[int], float]:
    """Learning rate of each update: linear warm-up, then cosine annealing to 0 over what is left of all epochs."""
    warmup, total = recipe.warmup_epochs * updates_per_epoch, recipe.epochs * updates_per_epoch

    def rate(update: int) -> float:
        if update < warmup:
            return recipe.learning_rate * (update + 1) / warmup
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))

    return rate


@torch.no_grad()
def predict(
    network: nn.Module, loader: Iterable[Any], device: torch.device, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Predictions ``[T, N]`` from the time-mean logits of the first t steps, and labels ``[N]``."""
    was_training = network.training
    network.eval()
    predictions, labels = [], []
    for x, y in loader:
        logits = network.step_logits(x.to(device, dtype))  # type: ignore[operator]
        predictions.append(logits.cumsum(0).argmax(-1).cpu())
        labels.append(y)
    network.train(was_training)
    return torch.cat(predictions, 1), torch.cat(labels)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percent of right predictions after the last step."""
    return share(predictions[-1] == labels)


def share(which: Tensor) -> float:
    return 100 * float(which.double().mean())


def evaluate(network: Network, test: Iterable[Any], device: torch.device, float64: bool) -> dict[str, float]:
    """Everything that is measured on a trained network (accuracies and shares in percent, SOPs and MACs in 1e9 an image).

    In the parameters' own precision, whatever the training's: what is compared is measured alike.
    """
    predictions, labels = predict(network, test, device)
    metrics = {"test/final": accuracy(predictions, labels)}
    some = first_images(test, COUNTED_IMAGES, network.frames).to(device)
    operations = count_operations(network, some)
    metrics |= {"ops/sops_g": operations.total_sops * 1e-9, "ops/macs_g": operations.total_macs * 1e-9}
    metrics |= {"ops/energy_mj": operations.energy_mj, "ops/energy_with_macs_mj": operations.energy_with_macs_mj}
    if network.steps > 1:
        for t in range(network.steps):
            metrics[f"prefix/t{t + 1}"] = share(predictions[t] == labels)
    if any(isinstance(m, lmht.QCFS) for m in network.modules()):
        for steps in CONVERTED_STEPS:
            converted = to_if(network, steps)
            metrics[f"if/T{steps}/accuracy"] = accuracy(*predict(converted, test, device))
            operations = count_operations(converted, some)
            metrics[f"if/T{steps}/sops_g"] = operations.total_sops * 1e-9
            metrics[f"if/T{steps}/energy_mj"] = operations.energy_mj
    if any(isinstance(m, lmht.LMHT | lmht.MHT) and m.levels > 1 for m in network.modules()):
        metrics |= evaluate_reparameterized(network, test, some, device, float64)
    return metrics


def evaluate_reparameterized(
    network: Network, test: Iterable[Any], some: Tensor, device: torch.device, float64: bool
) -> dict[str, float]:
    """Table 2: the one-level twin's accuracy, SOPs, and the share of predictions that it changes."""
    twin = reparameterize(network)
    frames = [(repeat_frames(x, network, twin), y) for x, y in test] if network.frames else test
    before, labels = predict(network, test, device)
    after, _ = predict(twin, frames, device)
    operations = count_operations(twin, repeat_frames(some, network, twin))
    metrics = {
        "reparam/accuracy": accuracy(after, labels),
        "reparam/changed_pct": share(before[-1] != after[-1]),
        "reparam/sops_g": operations.total_sops * 1e-9,
        "reparam/energy_mj": operations.energy_mj,
    }
    if float64:
        network = copy.deepcopy(network).double()
        before, _ = predict(network, test, device, torch.float64)
        after, _ = predict(reparameterize(network), frames, device, torch.float64)
        metrics["reparam/changed_float64_pct"] = share(before[-1] != after[-1])
    if non_affine(network):
        return metrics
    dtype = torch.float64 if float64 else None
    foretold = [foretell(network, x.to(device, dtype)) for x, _ in test]
    expected = torch.cat([logits.argmax(-1).cpu() for logits, _ in foretold])
    same = torch.cat([equal.cpu() for _, equal in foretold])
    return (
        metrics
        | {  # claim C7, in the highest precision measured: accuracies in points, shares of all images in percent
            "certificate/accuracy_change": share(expected == labels) - share(before[-1] == labels),
            "certificate/measured_change": share(after[-1] == labels) - share(before[-1] == labels),
            "certificate/promised_pct": share(same),
            "certificate/broken_pct": share(same & (before[-1] != after[-1])),
        }
    )


def compare_with_ann(
    ann: Network, snn: Network, test: Iterable[Any], device: torch.device, float64: bool
) -> dict[str, float]:
    """Before any fine-tuning: accuracies of the quantised ANN and of its conversion, and how many predictions agree."""
    expected, labels = predict(ann, test, device)
    converted, _ = predict(snn, test, device)
    metrics = {
        "ann/accuracy": accuracy(expected, labels),
        "before/accuracy": accuracy(converted, labels),
        "before/agree_pct": share(converted[-1] == expected[-1]),
    }
    if float64:
        expected, _ = predict(copy.deepcopy(ann).double(), test, device, torch.float64)
        converted, _ = predict(copy.deepcopy(snn).double(), test, device, torch.float64)
        metrics["before/agree_float64_pct"] = share(converted[-1] == expected[-1])
    return metrics


def first_images(loader: Iterable[Any], count: int, frames: bool) -> Tensor:
    batches, n = [], 0
    for x, _ in loader:
        batches.append(x)
        n += x.shape[1 if frames else 0]
        if n >= count:
            break
    return torch.cat(batches, 1 if frames else 0)[(slice(None),) * frames + (slice(count),)]


def save(network: nn.Module, path: Path) -> Path:
    torch.save({name: t.cpu() if isinstance(t, Tensor) else t for name, t in network.state_dict().items()}, path)
    return path


def _describe(info: data.Data) -> dict[str, str]:
    return {"name": info.name, "digest": info.digest, "source": info.source}
