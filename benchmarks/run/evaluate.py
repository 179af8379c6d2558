"""What is measured on a trained network: accuracies, SOPs and energy, its conversions and its reparameterised twin."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import lmht
from benchmarks.record import COUNTED_IMAGES, Measured
from lmht.conversion import to_if
from lmht.energy import Operations, count_operations
from lmht.graph import non_affine
from lmht.networks import MultiStep
from lmht.reparameterize import foretell, reparameterize, repeat_frames

VERSION = 2  # of what this module measures: raised whenever a number that it gives could become another
CONVERTED_STEPS = (2, 4, 8)  # the latencies of Table 4's QCFS conversions


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
        labels.append(y.cpu())
    network.train(was_training)
    return torch.cat(predictions, 1), torch.cat(labels)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percent of right predictions after the last step."""
    return share(predictions[-1] == labels)


def share(which: Tensor) -> float:
    return 100 * float(which.double().mean())


def evaluate(network: MultiStep, test: Iterable[Any], device: torch.device, float64: bool) -> Measured:
    """Everything that is measured on a trained network (accuracies and shares in percent, SOPs and MACs in 1e9 an image).

    In the parameters' own precision, whatever the training's: what is compared is measured alike.
    """
    predictions, labels = predict(network, test, device)
    metrics = {"test/final": accuracy(predictions, labels)}
    classes = {"test/final": predictions[-1]}
    some = first_images(test, COUNTED_IMAGES, network.frames).to(device)
    operations = count_operations(network, some)
    metrics |= cost("ops/", operations) | {"ops/macs_g": operations.total_macs * 1e-9}
    metrics |= {"ops/energy_with_macs_mj": operations.energy_with_macs_mj}
    if network.steps > 1:
        for t in range(network.steps):
            metrics[f"prefix/t{t + 1}"] = share(predictions[t] == labels)
    if any(isinstance(m, lmht.QCFS) for m in network.modules()) and not network.frames:  # a static image has any T
        for steps in CONVERTED_STEPS:
            converted = to_if(network, steps)
            found, _ = predict(converted, test, device)
            metrics[f"if/T{steps}/accuracy"] = accuracy(found, labels)
            classes[f"if/T{steps}/accuracy"] = found[-1]
            metrics |= cost(f"if/T{steps}/", count_operations(converted, some))
    if any(isinstance(m, lmht.LMHT | lmht.MHT) and m.levels > 1 for m in network.modules()):
        more, classes["reparam/accuracy"] = evaluate_reparameterized(
            network, predictions, labels, test, some, device, float64
        )
        metrics |= more
    tgim: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, lmht.LMHT):
            omega, leak = module.tgim()
            tgim[name] = {"omega": omega.tolist(), "leak": leak.tolist()}
    by_metric = {name: one.numpy() for name, one in classes.items()}
    return Measured(metrics, labels.numpy(), by_metric, tgim, VERSION, operations.uncounted)


def cost(source: str, operations: Operations) -> dict[str, float]:
    """SOPs in 1e9 and energy in mJ an image; and how many operations they leave out, where they do."""
    found = {f"{source}sops_g": operations.total_sops * 1e-9, f"{source}energy_mj": operations.energy_mj}
    return found | ({f"{source}uncounted": len(operations.uncounted)} if operations.uncounted else {})


def evaluate_reparameterized(
    network: MultiStep,
    before: Tensor,
    labels: Tensor,
    test: Iterable[Any],
    some: Tensor,
    device: torch.device,
    float64: bool,
) -> tuple[dict[str, float], Tensor]:
    """Table 2: the one-level twin's accuracy, SOPs, and the share of predictions that it changes; and its predictions [N].

    ``before`` and ``labels`` are the network's own, from :func:`predict`.
    """
    twin = reparameterize(network, inexact=True)  # max-pools and attention, too: that it differs is what is measured
    frames = [(repeat_frames(x, network, twin), y) for x, y in test] if network.frames else test
    after, _ = predict(twin, frames, device)
    classes = after[-1]
    metrics = cost("reparam/", count_operations(twin, repeat_frames(some, network, twin))) | {
        "reparam/accuracy": accuracy(after, labels),
        "reparam/changed_pct": share(before[-1] != after[-1]),
    }
    if float64:
        network = copy.deepcopy(network).double()
        before, _ = predict(network, test, device, torch.float64)
        after, _ = predict(reparameterize(network, inexact=True), frames, device, torch.float64)
        metrics["reparam/changed_float64_pct"] = share(before[-1] != after[-1])
    if non_affine(network):
        return metrics, classes
    dtype = torch.float64 if float64 else None
    foretold = [foretell(network, x.to(device, dtype)) for x, _ in test]
    expected = torch.cat([logits.argmax(-1).cpu() for logits, _ in foretold])
    same = torch.cat([equal.cpu() for _, equal in foretold])
    metrics |= {  # claim C7, in the highest precision measured: accuracies in points, shares of all images in percent
        "certificate/accuracy_change": share(expected == labels) - share(before[-1] == labels),
        "certificate/measured_change": share(after[-1] == labels) - share(before[-1] == labels),
        "certificate/promised_pct": share(same),
        "certificate/broken_pct": share(same & (before[-1] != after[-1])),
    }
    return metrics, classes


def compare_with_ann(
    ann: MultiStep, snn: MultiStep, test: Iterable[Any], device: torch.device, float64: bool
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Before any fine-tuning: accuracies of the quantised ANN and of its conversion, how many predictions agree; and those, [N]."""
    expected, labels = predict(ann, test, device)
    converted, _ = predict(snn, test, device)
    metrics = {
        "ann/accuracy": accuracy(expected, labels),
        "before/accuracy": accuracy(converted, labels),
        "before/agree_pct": share(converted[-1] == expected[-1]),
    }
    classes = {"ann/accuracy": expected[-1], "before/accuracy": converted[-1]}
    if float64:
        expected, _ = predict(copy.deepcopy(ann).double(), test, device, torch.float64)
        converted, _ = predict(copy.deepcopy(snn).double(), test, device, torch.float64)
        metrics["before/agree_float64_pct"] = share(converted[-1] == expected[-1])
    return metrics, classes


def first_images(loader: Iterable[Any], count: int, frames: bool) -> Tensor:
    batches, n = [], 0
    for x, _ in loader:
        batches.append(x)
        n += x.shape[1 if frames else 0]
        if n >= count:
            break
    return torch.cat(batches, 1 if frames else 0)[(slice(None),) * frames + (slice(count),)]
