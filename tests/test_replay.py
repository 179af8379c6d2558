"""A training whose passes are CUDA graphs is the one whose passes are launched."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import DataError
from benchmarks.run.again import again
from benchmarks.run.replay import Replayed
from benchmarks.run.state import Progress
from benchmarks.run.train import run_cell
from benchmarks.spec import load_profile, load_spec, resolve, select_rows
from lmht import LMHT, QCFS
from lmht.networks import build

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def trained(precision: Any, activation: Callable[[], nn.Module], steps: int, replay: bool) -> tuple[list[float], Any]:
    """Losses of six updates, the fourth one on a smaller batch, and what the network is then."""
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
    network = build("ResNet-20", activation, classes=10, steps=steps).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = fabric.setup(network, optimizer)

    def launched(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        fabric.backward(loss)
        return loss.detach()

    passes = Replayed(launched, network) if replay else launched
    losses = []
    for number, x in enumerate(torch.randn(6, 32, 3, 32, 32, device="cuda")):
        part = slice(17 if number == 3 else None)
        loss = passes(x[part], (torch.arange(32, device="cuda") % 10)[part])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert not isinstance(passes, Replayed) or passes.graph
    return losses, {name: one.cpu() for name, one in network.state_dict().items()}


@gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("activation", "steps"), [(lambda: QCFS(8), 1), (lambda: LMHT(2, 2), 2)], ids=["qcfs", "lmht"])
def test_replaying_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, precision: str, activation: Callable[[], nn.Module], steps: int
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    launched, replayed = (trained(precision, activation, steps, replay) for replay in (False, True))
    assert launched[0] == replayed[0]
    for name, one in launched[1].items():
        assert torch.equal(one, replayed[1][name]), name


@gpu
def test_a_network_that_asks_the_gpu_is_launched() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.sum() > -1e9  # waits for the GPU's answer
            return x.relu()

    network = build("ResNet-20", Asking, classes=10, steps=1).cuda()

    def launched(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach()

    passes, x, y = Replayed(launched, network), torch.randn(4, 3, 32, 32, device="cuda"), torch.arange(4, device="cuda")
    with pytest.warns(UserWarning, match="no CUDA graph of this network, which trains launch by launch"):
        passes(x, y)
    assert passes(torch.randn_like(x), y).isfinite()
    assert torch.equal(next(b for n, b in network.named_buffers() if n.endswith("tracked")).cpu(), torch.tensor(2))


def test_a_training_names_what_it_ran_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    at = Progress()
    for name in ("cuda", "cuda", "cpu", "cpu"):
        at.on(torch.device(name))
    assert at.devices == ["NVIDIA H100", "cpu"]


def test_float32_is_float32_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever computes with a network says so first: a training, and an evaluation of a stored one."""
    cell = resolve(select_rows("table4", load_spec("table4"), ["resnet20-tq4-if-t2"])[0], load_profile("paper-small"))
    record = SimpleNamespace(config=cell.model_dump())
    trained = run_cell(cell, 42, root=tmp_path, device="cpu", out=tmp_path / "c.pt")
    evaluated = partial(again, cast(Any, record), tmp_path / "c.pt", None, root=tmp_path, device="cpu", where={})
    for work in (partial(next, trained), evaluated):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        with pytest.raises(DataError, match="not found"):  # which comes later
            work()
        assert not torch.backends.cudnn.allow_tf32
