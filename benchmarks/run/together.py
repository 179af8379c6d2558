"""One training on several processes, one a device: started by torchrun or SLURM, else by Fabric as copies of this command.

The first process, the leader, claims seeds, keeps states and logs; the others follow it into each training. What they compute
together is what one process computes with the whole batch, up to rounding: equal parts of it, gradients averaged by DDP, batches
normalised jointly, each test image looked at by one of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from benchmarks.spec import SpecError

if TYPE_CHECKING:  # imported late: it takes seconds, and only a training needs it
    from lightning_fabric import Fabric

_Found = TypeVar("_Found")


def launched() -> tuple[str, int, int]:
    """Who started this process among others (nobody: ""), how many there are, and how many of them on this machine."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    if distributed.is_torchelastic_launched():
        return "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if SLURMEnvironment.detect():
        tasks = os.environ["SLURM_NTASKS"]
        return "SLURM", int(tasks), int(os.environ.get("SLURM_NTASKS_PER_NODE", tasks))
    return "", 1, 1


def check(devices: int, device: str) -> None:
    """Find out before anything starts whether there are as many processes and devices as a profile's ``devices``.

    Raises:
        SpecError: there are not.
    """
    by, processes, here = launched()
    # several tasks of SLURM with devices = 1 are so many commands, which share the store's seeds
    if by and processes != devices and (devices > 1 or by == "torchrun"):
        raise SpecError(
            f"the profile trains on devices = {devices}, and {by} started {processes} processes; "
            f"start {devices}, or set devices = {processes} in the profile (which makes other cells, trained anew)"
        )
    wanted = here if by and devices > 1 else devices
    there, kind = (
        (torch.cuda.device_count(), "GPUs") if device == "cuda" else (len(os.sched_getaffinity(0)), "CPU cores")
    )
    if wanted > there:
        raise SpecError(
            f"devices = {devices} wants {wanted} {kind} of this machine, which has {there}; lower devices in the profile, "
            "or start the command on several machines by torchrun or srun"
        )


def fabric(devices: int, device: str, precision: Any) -> "Fabric":
    """Fabric for one process, whatever else SLURM has started; or for this one of several."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    if devices == 1:
        return Fabric(accelerator=device, devices=1, precision=precision, plugins=LightningEnvironment())
    by, _, here = launched()
    here = here if by else devices
    # a process with one test batch less than another has no buffers to wait for; joint batches keep them equal
    strategy = DDPStrategy(broadcast_buffers=False)
    return Fabric(accelerator=device, devices=here, num_nodes=devices // here, strategy=strategy, precision=precision)


class Group:
    """The processes that train together.

    Attributes:
        rank: this process's number; 0 leads.
        in_step: whether all of them wait for the next training; not so in one, nor after one that broke in this process alone.
    """

    def __init__(self, devices: int, device: str) -> None:
        fabric(devices, device, "32-true").launch()
        self.rank, self.in_step = distributed.get_rank(), True
        # followers wait here while the leader evaluates, or waits for a store or for other machines' seeds
        self.control: Any = distributed.new_group(backend="gloo", timeout=timedelta(days=365))

    def tell(self, work: Any) -> None:
        """Begin a training in all followers; None ends them."""
        distributed.broadcast_object_list([work], 0, self.control)

    def hear(self) -> Any:
        box = [None]
        distributed.broadcast_object_list(box, 0, self.control)
        return box[0]

    @contextmanager
    def training(self) -> Iterator[None]:
        """A block in which every process is bound to what the others do; one that leaves it early is out of step for good."""
        self.in_step = False
        yield
        self.in_step = True


@contextmanager
def started(devices: int, device: str) -> Iterator[Group | None]:
    """The group of this process and those that train with it, started if nobody has; None for a profile with one device.

    Raises:
        SpecError: there are not as many processes or devices.
    """
    check(devices, device)
    if devices == 1:
        yield None
        return
    group = Group(devices, device)
    try:
        yield group
    finally:
        if group.in_step:  # else a follower hangs in a training: it ends when this process does
            if group.rank == 0:
                group.tell(None)
            distributed.destroy_process_group()


def everywhere(work: Callable[[], _Found], *expected: type[Exception]) -> _Found:
    """What ``work`` gives in this process; an expected error in one process is raised in all."""
    found, error = None, None
    try:
        found = work()
    except expected as caught:
        error = caught
    if distributed.is_initialized():
        errors: list[Exception | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(errors, error)
        error = next((one for one in errors if one), None)
    if error:
        raise error
    return cast(_Found, found)


class _Sum(torch.autograd.Function):
    """The sum over all processes, and of its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    backward = forward


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises over the batches of all processes, which are equally large: what nn.SyncBatchNorm does on GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        kind, x = x.dtype, x.to(torch.promote_types(x.dtype, self.weight.dtype))
        processes, over = distributed.get_world_size(), [0, *range(2, x.dim())]
        shape = [-1] + [1] * (x.dim() - 2)
        mean = _Sum.apply(x.mean(over)) / processes
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(over)) / processes
        with torch.no_grad():
            n = processes * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(kind)

    def _check_input_dim(self, input: Tensor) -> None:
        """Of a network that has run with the layer that was here before."""


def synchronised(network: Any, device: torch.device) -> Any:
    """A network whose BatchNorm layers normalise over all processes' batches; its parameters and buffers are the same tensors."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = JointBatchNorm  # it has the same state, and nothing else changes
    return network
