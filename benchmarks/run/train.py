"""One cell, one seed: build the network, train it in one visible loop, evaluate. Knows nothing of MLflow.

:func:`run_cell` yields an ``Epoch`` after every epoch and one ``Result`` at the end (:mod:`benchmarks.record`).
"""

import contextvars
import itertools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

import lmht
from benchmarks import data
from benchmarks.record import Epoch, Result
from benchmarks.run import together
from benchmarks.run.evaluate import compare_with_ann, evaluate, predict
from benchmarks.run.network import deterministic as ask_for_determinism
from benchmarks.run.network import full_float32, network_of, starting_network
from benchmarks.run.replay import Replayed
from benchmarks.run.state import Progress, States, generators, restore_generators
from benchmarks.spec import Cell, Recipe
from lmht.conversion import to_lmht
from lmht.kernels import use_backend
from lmht.networks import MultiStep

LEAST_SCALE = 1e-2
STATE_SECONDS = 120.0  # a state is kept this often, and at the end of every epoch


class TrainingError(Exception):
    """Training went wrong in a way that more epochs won't mend."""


class StoppedError(Exception):
    """The training was asked to stop, and kept its state."""


def run_cell(
    cell: Cell,
    seed: int,
    *,
    root: Path,
    device: str,
    out: Path,
    ann: Path | None = None,
    data_workers: int = 0,
    deterministic: bool = False,
    state_dir: str | None = None,
    run_id: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Epoch | Result]:
    """Train and evaluate one cell with one seed, from its state if there is one: then past epochs are told again first.

    Of ``cell.devices`` processes (:mod:`benchmarks.run.together`) each calls this, and takes its part of every batch; the first
    one alone keeps states and gives the result.

    Args:
        root: where data sets lie.
        device: Fabric accelerator: ``cpu``, ``cuda`` or ``auto``.
        data_workers: processes that load and augment training images.
        deterministic: whether this process shall from now on take algorithms alone that give the same bits in every run.
        out: file to write the checkpoint to (the state of the last epoch).
        ann: checkpoint of ``cell.ann`` with the same seed, for a fine-tuned cell.
        state_dir: folder for states, any fsspec address; None keeps none.
        run_id: the MLflow run, for the states' headers.
        stopping: asked after every update; once it is true the state is kept and the training ends.

    Raises:
        StoppedError: ``stopping`` said so; the same call goes on from there.
        data.DataError: a data set is missing or damaged.
        TrainingError: the loss is not finite, or there are not ``cell.devices`` processes.
    """
    if cell.devices > 1 and not (distributed.is_initialized() and distributed.get_world_size() == cell.devices):
        raise TrainingError(
            f"{cell.name}: devices = {cell.devices} are so many processes, which `python -m benchmarks run` starts"
        )
    if cell.threads:
        torch.set_num_threads(cell.threads)
    if deterministic:
        ask_for_determinism()
    states = States(state_dir, cell, seed) if state_dir else None
    work = (cell, seed, root, device, out, ann, data_workers, states, run_id, stopping)
    context = contextvars.copy_context()  # between two events the caller's own choice of backend holds
    events = _on_backend(cell.backend, _train(*work))
    try:
        while (event := context.run(next, events, None)) is not None:
            yield event
    finally:
        context.run(events.close)


def _on_backend(backend: str, events: Generator[Epoch | Result, None, None]) -> Generator[Epoch | Result, None, None]:
    with use_backend(backend):
        yield from events


def _train(
    cell: Cell,
    seed: int,
    root: Path,
    device: str,
    out: Path,
    ann: Path | None,
    data_workers: int,
    states: States | None,
    run_id: str | None,
    stopping: Callable[[], bool],
) -> Generator[Epoch | Result, None, None]:
    recipe, devices = cell.recipe, cell.devices
    full_float32()
    fabric = together.fabric(devices, device, recipe.precision)
    fabric.launch()
    torch.manual_seed(seed)
    info = together.everywhere(
        lambda: data.load(
            cell.dataset, root=root, steps=cell.neuron.steps, augment=recipe.augment, validation=recipe.validation
        ),
        data.DataError,
    )
    options: dict[str, Any] = {"seed": seed, "workers": data_workers, "device": fabric.device}
    share: dict[str, Any] = {"rank": fabric.global_rank, "world": devices}
    train, val, test = data.loaders(info, recipe.batch_size // devices, **share, **options)
    whole_test = test if devices == 1 else data.loaders(info, recipe.batch_size, **options)[2]
    network: MultiStep = network_of(cell, info)
    if cell.ann is not None:
        assert ann is not None, "a fine-tuned cell needs its quantised ANN's checkpoint"
        assert cell.start is not None
        weights: Any = torch.load(ann, weights_only=True) if fabric.is_global_zero else None  # others may lack the file
        network.load_state_dict(fabric.broadcast(weights))
        network.to(fabric.device)
        source = network
        network = to_lmht(source, cell.neuron.levels, cell.neuron.steps, start=cell.start)
    before, refused = states.load(partial(fits, network)) if states and fabric.is_global_zero else (None, [])
    before = fabric.broadcast(before)  # all processes go on from the leader's
    for reason in refused:
        warnings.warn(f"{reason}; going on from the state before it, or from the start", stacklevel=2)
    digest = before["data"] if before else fabric.broadcast(info.digest)

    def check_data() -> None:
        if info.digest != digest:
            raise TrainingError(
                f"{cell.name}, seed {seed}: the data in {info.source} are not those that its training began with; "
                f"bring them back, or remove {states and states.folder} to begin anew"
            )

    together.everywhere(check_data, TrainingError)
    at = Progress(**before["progress"]) if before else Progress(loss_sums=[0.0] * devices)
    if cell.ann is not None and not before:
        at.extra, at.classes = compare_with_ann(source, network, whole_test, fabric.device, cell.float64_checks)
    if recipe.channels_last:
        check_channels_last(network, recipe, fabric.device)
        network = network.to(memory_format=torch.channels_last)
    if devices > 1:
        network = together.synchronised(network, fabric.device)
    optimizer = make_optimizer(network, recipe, fabric.device)
    model, optimizer = fabric.setup(network, optimizer)
    model.mark_forward_method("step_logits")
    forward = torch.compile(model) if recipe.compile else model

    def launched(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(forward(images), labels, label_smoothing=recipe.label_smoothing)
        fabric.backward(loss / recipe.accumulate)
        return loss.detach()

    alone = devices == recipe.accumulate == 1 and not recipe.compile
    passes = Replayed(launched, network) if alone and fabric.device.type == "cuda" else launched
    if before:
        network.load_state_dict(before["network"])
        optimizer.load_state_dict(before["optimizer"])
        fabric.strategy.precision.load_state_dict(before["precision"])
        restore_generators(before["generators"])

    at.on(fabric.device)
    scales: list[Tensor] = [m.scale for m in network.modules() if isinstance(m, lmht.QCFS)]
    batches = len(train)
    if recipe.epoch_images:
        batches = min(batches, math.ceil(recipe.epoch_images / recipe.batch_size))
    schedule = cosine(recipe, math.ceil(batches / recipe.accumulate))
    kept = time.monotonic()

    def keep() -> None:
        nonlocal kept
        if states and fabric.is_global_zero:
            content = {"progress": asdict(at), "data": info.digest, "generators": generators()}
            content |= {"network": state_of(network), "optimizer": optimizer.state_dict()}
            states.save(content | {"precision": fabric.strategy.precision.state_dict()}, run_id)
        kept = time.monotonic()

    def due() -> tuple[bool, bool]:
        """Whether to stop, and whether to keep the state now; the same answers in all processes, which so do it together."""
        answers = torch.tensor([stopping(), time.monotonic() - kept > STATE_SECONDS], dtype=torch.float32)
        if devices > 1:
            shared = fabric.all_reduce(answers, reduce_op="max")
            assert isinstance(shared, Tensor)
            answers = shared
        stop, keep = answers.tolist()
        return bool(stop), bool(stop or keep)

    def checked(loss: float) -> float:
        if not math.isfinite(loss):
            raise TrainingError(
                f"{cell.name}, seed {seed}: the loss is {loss} in epoch {at.epoch + 1}; lower the learning rate"
            )
        return loss

    def looked_at(part: Iterable[Any]) -> float:
        """Accuracy on a part of the data, each image of which is looked at by one process."""
        predictions, labels = predict(model, part, fabric.device)
        counts = torch.tensor([float((predictions[-1] == labels).sum()), len(labels)], dtype=torch.float64)
        counted = fabric.all_reduce(counts, reduce_op="sum")
        assert isinstance(counted, Tensor)
        right, count = counted.tolist()
        return 100 * (right / count)

    for epoch, metrics in enumerate(at.history):
        yield Epoch(epoch + 1, recipe.epochs, metrics)
    if at.epoch < recipe.epochs:
        train.sampler.set_epoch(at.epoch, at.batch)
        coming = iter(train)
    while at.epoch < recipe.epochs:
        model.train()
        started, loss_sum = (
            time.perf_counter() - at.seconds,
            torch.tensor(at.loss_sums[fabric.global_rank], device=fabric.device),
        )
        for i, (x, y) in enumerate(itertools.islice(coming, batches - at.batch), at.batch):
            last = (i + 1) % recipe.accumulate == 0 or i + 1 == batches
            with fabric.no_backward_sync(model, enabled=not last):
                loss_sum += passes(x, y) * len(y)
            at.images += len(y)
            if not last:
                continue
            for group in optimizer.param_groups:
                group["lr"] = schedule(at.update)
            optimizer.step()
            optimizer.zero_grad()
            keep_scales_positive(scales)
            at.update += 1
            at.batch = i + 1
            stop, now = due()
            if now:
                loss_sums = fabric.all_gather(loss_sum)
                assert isinstance(loss_sums, Tensor)
                at.loss_sums = [checked(loss) for loss in loss_sums.view(-1).tolist()]
                at.seconds = time.perf_counter() - started
                keep()
            if stop:
                raise StoppedError(
                    f"stopped in epoch {at.epoch + 1} of {recipe.epochs}, after {at.batch} of {batches} batches"
                )
        total_loss = fabric.all_reduce(loss_sum, reduce_op="sum")
        assert isinstance(total_loss, Tensor)
        images = at.images * devices
        mean_loss = checked(float(total_loss) / images)
        seconds = time.perf_counter() - started
        metrics = {"loss": mean_loss, "images_per_s": images / seconds}
        if at.epoch + 1 < recipe.epochs:  # the workers' next images, while this process looks at the test's
            train.sampler.set_epoch(at.epoch + 1)
            coming = iter(train)
        metrics["test"] = looked_at(test)
        at.best["test/best"] = max(at.best.get("test/best", 0.0), metrics["test"])
        if recipe.validation:
            metrics["val"] = looked_at(val)
            if metrics["val"] > at.best_val:
                at.best_val, at.best["test/best_val"] = metrics["val"], metrics["test"]
        at.history.append(metrics)
        at.epoch, at.batch, at.images, at.seconds, at.loss_sums = at.epoch + 1, 0, 0, 0.0, [0.0] * devices
        keep()  # before the epoch is told: what is logged is never ahead of the state
        yield Epoch(at.epoch, recipe.epochs, metrics)

    if fabric.is_global_zero:
        network = model.module
        checkpoint = save(network, out)  # first: the evaluation needs more memory than training
        if devices > 1:  # without what its processes shared
            network = starting_network(cell, info).to(fabric.device)
            network.load_state_dict(model.module.state_dict())
            if recipe.channels_last:
                network = network.to(memory_format=torch.channels_last)
        final = {f"{part}/final": at.history[-1][part] for part in ("val",) * bool(recipe.validation)}
        measured = evaluate(network, whole_test, fabric.device, cell.float64_checks)
        measured.predictions.update({name: one.numpy() for name, one in at.classes.items()})
        metrics = final | at.best | at.extra | measured.metrics
        yield Result(metrics, checkpoint, describe(info, root), measured, ", then ".join(at.devices))


def fits(network: nn.Module, content: dict[str, Any]) -> None:
    """Refuse, by whatever error, a state that a training of this network did not write."""
    Progress(**content["progress"])
    if missing := {"data", "generators", "network", "optimizer", "precision"} - content.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    ours, theirs = (
        {name: getattr(t, "shape", None) for name, t in one.items()}
        for one in (network.state_dict(), content["network"])
    )
    if unlike := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        raise ValueError(f"{unlike[0]} is of shape {theirs.get(unlike[0])}, the network's of {ours.get(unlike[0])}")


@torch.no_grad()
def keep_scales_positive(scales: list[Tensor]) -> None:
    """Project QCFS's ``vartheta`` onto ``>= LEAST_SCALE``: its gradient sums over a layer, and an early step can overshoot."""
    if scales:
        torch._foreach_clamp_min_(scales, LEAST_SCALE)


def check_channels_last(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Refuse what makes oneDNN write a weight's float32 gradient from beyond its workspace: it crashes, hangs or is wrong.

    Strided 1x1 convolutions of fewer channels than a vector holds, in channels_last (github.com/uxlfoundation/oneDNN/issues/6035;
    a segmentation fault with torch 2.15 at 8 channels of 64x64 pixels). Narrower vectors allow fewer channels; what is refused is
    the same on every CPU.

    Raises:
        TrainingError: names the convolution.
    """
    if device.type != "cpu" or recipe.precision != "32-true":
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and max(module.stride) > 1:
            channels = module.in_channels // module.groups
            if channels < 16:
                raise TrainingError(
                    f"{name} is a strided 1x1 convolution of {channels} channels, whose float32 gradient can crash or be wrong in "
                    f"channels_last on a CPU (oneDNN issue 6035): set channels_last = false, or a width that gives it 16"
                )


def make_optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type == "cuda" or None  # on a CPU torch's choice
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def cosine(recipe: Recipe, updates_per_epoch: int) -> Callable[[int], float]:
    """Learning rate of each update: linear warm-up, then cosine annealing to 0 over what is left of all epochs."""
    warmup, total = recipe.warmup_epochs * updates_per_epoch, recipe.epochs * updates_per_epoch

    def rate(update: int) -> float:
        if update < warmup:
            return recipe.learning_rate * (update + 1) / warmup
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))

    return rate


def state_of(network: nn.Module) -> dict[str, Any]:
    """The state dict, on the CPU."""
    return {name: t.cpu() if isinstance(t, Tensor) else t for name, t in network.state_dict().items()}


def save(network: nn.Module, path: Path) -> Path:
    torch.save(state_of(network), path)
    return path


def describe(info: data.Data, root: Path) -> dict[str, str]:
    """The data as a record names them: by their place below the data root, which is nobody else's business."""
    below = Path(info.source).is_relative_to(root)
    return {
        "name": info.name,
        "digest": info.digest,
        "source": Path(info.source).relative_to(root).as_posix() if below else info.source,
    }
