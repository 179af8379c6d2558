"""Networks of any modules through the graph tools: right, or refused by name. First, one module of every class of torch.nn."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lmht import LMHT, QCFS, FreeTGIM
from lmht.conversion import replace_modules, to_if, to_lmht
from lmht.energy import count_operations
from lmht.graph import non_affine
from lmht.networks import MultiStep
from lmht.reparameterize import certify, reparameterize

CLASSES = [c for _, c in sorted(vars(nn).items()) if isinstance(c, type) and issubclass(c, nn.Module)]
LINE, IMAGE, CUBE = (4, 6), (4, 6, 6), (4, 4, 4, 4)
Make = Callable[[], nn.Module]


def each(
    shapes: tuple[tuple[int, ...], ...], *names: str, **options: object
) -> dict[str, tuple[tuple[int, ...], Make]]:
    """For each number of dimensions, the shape of a sample and how the module is made."""
    made = {}
    for name in names:
        for dimensions, shape in zip(("1d", "2d", "3d"), shapes, strict=True):
            made[name + dimensions] = (shape, partial(getattr(nn, name + dimensions), **options))
    return made


ALL = (LINE, IMAGE, CUBE)
# Conversion is exact, and so is reparameterisation.
EXACT: dict[str, tuple[tuple[int, ...], Make]] = {
    **each(ALL, "Conv", in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2),
    **each(
        ALL,
        "ConvTranspose",
        in_channels=4,
        out_channels=6,
        kernel_size=3,
        stride=2,
        padding=1,
        output_padding=1,
        groups=2,
    ),
    **each(ALL, "BatchNorm", num_features=4),
    **each(ALL, "InstanceNorm", num_features=4, track_running_stats=True, affine=True),
    **each(ALL, "Dropout"),
    **each(ALL, "AvgPool", kernel_size=2),
    **each(ALL, "AdaptiveAvgPool", output_size=2),
    **each(ALL, "ZeroPad", "CircularPad", "ReflectionPad", "ReplicationPad", padding=1),
    "AlphaDropout": (LINE, nn.AlphaDropout),
    "ChannelShuffle": (IMAGE, lambda: nn.ChannelShuffle(2)),
    "Dropout": (LINE, nn.Dropout),
    "FeatureAlphaDropout": (IMAGE, nn.FeatureAlphaDropout),
    "Flatten": (IMAGE, nn.Flatten),
    "Fold": ((8, 4), lambda: nn.Fold((3, 3), 2)),
    "Identity": (LINE, nn.Identity),
    "Linear": (LINE, lambda: nn.Linear(6, 5)),
    "PixelShuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": (IMAGE, lambda: nn.PixelUnshuffle(2)),
    "Sequential": (LINE, lambda: nn.Sequential(nn.Linear(6, 5), nn.Identity())),
    "SyncBatchNorm": (IMAGE, lambda: nn.SyncBatchNorm(4)),
    "Unflatten": (LINE, lambda: nn.Unflatten(1, (2, 2))),
    "Unfold": (IMAGE, lambda: nn.Unfold(2)),
    "Upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "UpsamplingBilinear2d": (IMAGE, lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    "UpsamplingNearest2d": (IMAGE, lambda: nn.UpsamplingNearest2d(scale_factor=2)),
}
# Conversion is exact; its offset can't be cut into L parts, so there is no twin.
OFFSETS = each(ALL, "ConstantPad", padding=1, value=0.5)
# Known, not affine: refused unless inexact=True. Any other class is refused always.
NOT_AFFINE: dict[str, tuple[tuple[int, ...], Make]] = {
    **each(ALL, "MaxPool", kernel_size=2),
    **each(ALL, "AdaptiveMaxPool", output_size=2),
    **each(ALL, "LPPool", norm_type=2, kernel_size=2),
    "GroupNorm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "LayerNorm": (LINE, lambda: nn.LayerNorm(6)),
    "RMSNorm": (LINE, lambda: nn.RMSNorm(6)),
    "LocalResponseNorm": (IMAGE, lambda: nn.LocalResponseNorm(2)),
    "GLU": (LINE, lambda: nn.GLU(1)),
    "Softmax": (LINE, lambda: nn.Softmax(1)),
    "LogSoftmax": (LINE, lambda: nn.LogSoftmax(1)),
    "Softmin": (LINE, lambda: nn.Softmin(1)),
    "Softmax2d": (IMAGE, nn.Softmax2d),
    "Threshold": (LINE, lambda: nn.Threshold(0.1, 0.0)),
} | {
    name: (LINE, getattr(nn, name))
    for name in (
        *(
            "ReLU",
            "ReLU6",
            "LeakyReLU",
            "PReLU",
            "RReLU",
            "ELU",
            "CELU",
            "SELU",
            "GELU",
            "SiLU",
            "Mish",
            "Hardtanh",
            "Tanhshrink",
        ),
        *(
            "Hardswish",
            "Hardsigmoid",
            "Hardshrink",
            "Softshrink",
            "Sigmoid",
            "LogSigmoid",
            "Tanh",
            "Softplus",
            "Softsign",
        ),
    )
}
# Neither linear nor step by step, or not themselves yet.
REFUSED: dict[str, tuple[tuple[int, ...], Make]] = {
    **each(ALL, "LazyConv", "LazyConvTranspose", out_channels=4, kernel_size=1),
    **each(ALL, "LazyBatchNorm", "LazyInstanceNorm", track_running_stats=True),
    "LazyLinear": (LINE, lambda: nn.LazyLinear(4)),
    "RNN": (LINE, lambda: nn.RNN(6, 4, batch_first=True)),
    "LSTM": (LINE, lambda: nn.LSTM(6, 4, batch_first=True)),
    "GRU": (LINE, lambda: nn.GRU(6, 4, batch_first=True)),
    "RNNBase": (LINE, lambda: nn.RNNBase("LSTM", 6, 4)),
    "MultiheadAttention": (LINE, lambda: nn.MultiheadAttention(6, 2)),
    "TransformerEncoderLayer": (LINE, lambda: nn.TransformerEncoderLayer(6, 2)),
    "FractionalMaxPool2d": (IMAGE, lambda: nn.FractionalMaxPool2d(2, 3)),
    "CrossMapLRN2d": (IMAGE, lambda: nn.CrossMapLRN2d(2)),
}


def filled(module: nn.Module) -> nn.Module:
    """Weights and running statistics at random, float64, eval mode."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and "scale" not in name and not nn.parameter.is_lazy(tensor):
            nn.init.uniform_(tensor.data, *((0.5, 1.5) if "var" in name else (-0.5, 0.7)))
    return module.double().eval()


def around(module: nn.Module, shape: tuple[int, ...], activation: Make) -> nn.Sequential:
    """image -> linear layer -> activation -> the module -> linear layer -> activation -> linear layer."""
    try:
        if "Lazy" in type(module).__name__:
            raise ValueError("a trial would make it another class")
        size = copy.deepcopy(module).float().eval()(torch.rand(2, *shape)).flatten(1).shape[1]
    except Exception:  # takes no such tensor, or more than one: to be refused
        size = 1
    after = (nn.Flatten(), nn.Linear(size, 7), activation(), nn.Linear(7, 3))
    first: nn.Module = nn.Linear(shape[-1], shape[-1])
    if isinstance(module, nn.modules.padding._ConstantPadNd):  # pads any axes: how many there are must be known
        first = getattr(nn, f"Conv{len(shape) - 1}d")(4, 4, 1)
    return filled(nn.Sequential(first, activation(), module, *after))


def images(shape: tuple[int, ...], n: int = 5) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-10)


def mixing() -> LMHT:
    """A neuron whose currents change over time, and leave the exactness region now and then."""
    neuron = LMHT(2, 2, theta=0.25, v0=0.125, tgim=FreeTGIM(2, leak=1.25))
    neuron.tgim.omega.data.copy_(torch.tensor([[1.5, -0.5], [-0.75, 1.25]]))
    return neuron


@torch.no_grad()
def spikes(network: nn.Module, data: Tensor, windows: int) -> dict[str, list[Tensor]]:
    """Spikes of every neuron, of each call (it may be used in several places), summed within each window."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in (network := copy.deepcopy(network)).named_modules():
        if isinstance(module, LMHT):

            def keep(neuron: LMHT, _: object, out: Tensor, name: str = name) -> None:
                counts = (out / neuron.theta).round().unflatten(0, (windows, neuron.steps // windows, -1)).sum(1)
                seen.setdefault(name, []).append(counts)

            module.register_forward_hook(keep)
    network(data)
    return seen


def check_twin(network: MultiStep, data: Tensor, *, differs: bool = False) -> None:
    """The certificate is what a run of the network and one of its twin show."""
    layers, twin = certify(network, [data]), reparameterize(network)
    one, other = spikes(network, data, network.steps), spikes(twin, data, network.steps)
    found = {name: sum(int((a - b).abs().sum()) for a, b in zip(one[name], other[name], strict=True)) for name in one}
    assert found == {name: layer.difference for name, layer in layers.items()}
    assert any(layer.spikes for layer in layers.values())
    if any(layer.difference for layer in layers.values()):
        assert differs
    else:
        close(twin(data), network(data))


def bare(kind: type[nn.Module]) -> nn.Module:
    """One of a class that no tool may run: what is in it doesn't matter."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_one_module_of_every_class_of_torch_nn_is_right_or_refused_by_name(kind: type[nn.Module]) -> None:
    name = kind.__name__
    shape, make = (EXACT | OFFSETS | NOT_AFFINE | REFUSED).get(name, (LINE, lambda: bare(kind)))
    data, ann = images(shape), around(make(), shape, lambda: QCFS(4, 1.0))
    snn = MultiStep(around(make(), shape, mixing), 2)
    module = snn.module[2]
    if name not in EXACT | OFFSETS:
        for tool in (lambda: to_lmht(ann, 2, 2), lambda: reparameterize(snn), lambda: certify(snn, [data])):
            with pytest.raises(ValueError, match=name):
                tool()
        if name not in NOT_AFFINE:
            for tool in (
                lambda: to_if(ann, 2),
                lambda: to_lmht(ann, 2, 2, inexact=True),
                lambda: count_operations(snn, data),
            ):
                with pytest.raises(ValueError, match=name):
                    tool()
            return
        assert to_if(ann, 2)(data).shape == reparameterize(snn, inexact=True)(data).shape == (5, 3)
        weighs = any(True for _ in module.parameters())
        assert [name in part for part in count_operations(snn, data).uncounted] == [True] * weighs
        return
    converted = to_lmht(ann, 2, 2)
    close(converted(data), ann(data))
    counted = count_operations(snn, data)
    assert not counted.uncounted
    analogue = module.state_dict() or name in OFFSETS  # the layer behind it sees no spikes
    assert counted.macs.keys() == ({"module.0", "module.4"} if analogue else {"module.0"})
    if name in OFFSETS:
        for tool in (lambda: reparameterize(snn), lambda: certify(snn, [data])):
            with pytest.raises(ValueError, match=f"offset of .*{name}"):
                tool()
        return
    check_twin(converted, data)
    check_twin(snn, data, differs=True)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        check_sops(snn, data)


@pytest.mark.parametrize(
    "layer",
    [
        *(partial(nn.Conv2d, 4, 5, 3, padding=2, padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
        partial(nn.Conv2d, 4, 4, (3, 2), padding="same", dilation=2, groups=4, bias=False),
        partial(nn.ConvTranspose2d, 4, 6, (3, 2), stride=(2, 1), padding=1, dilation=2, groups=2, bias=False),
    ],
    ids=lambda layer: f"{layer.func.__name__} {layer.keywords}",
)
def test_layers_with_weights_whatever_their_options(layer: Make) -> None:
    data, snn = images(IMAGE), MultiStep(around(layer(), IMAGE, mixing), 2)
    check_twin(snn, data, differs=True)
    check_sops(snn, data)


def check_sops(snn: MultiStep, data: Tensor) -> None:
    """By the definition: spikes through the layer, its weights ones."""
    ones, (arriving,) = copy.deepcopy(snn.module[2]), spikes(snn, data, 2)["module.1"]
    nn.init.ones_(ones.weight)
    if ones.bias is not None:
        nn.init.zeros_(ones.bias)
    sops = count_operations(snn, data).sops["module.2"]
    assert sops == pytest.approx(float(ones(arriving.flatten(0, 1)).detach().sum()) / len(data), rel=1e-12)


def calibrated(ann: nn.Module, data: Tensor) -> nn.Module:
    torch.manual_seed(0)
    ann.double().train()
    with torch.no_grad():
        for _ in range(3):
            ann(data)
    return ann.eval()


def random_tgims(network: MultiStep) -> MultiStep:
    """With T-GIMs that tell the time-steps apart."""
    network = copy.deepcopy(network)
    for i, parameter in enumerate(p for name, p in network.named_parameters() if "tgim" in name):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return network


def test_every_module_keeps_its_own_mode() -> None:
    ann = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), QCFS(4, 1.0), nn.Dropout(), nn.Linear(6, 3))
    for mode in (True, False):
        ann.train(mode)
        ann[1].train(not mode)
        ann[3].train(not mode)
        converted = to_lmht(ann, 2, 2)
        assert [module.training for module in converted.module] == [mode, not mode, mode, not mode, mode]
        assert converted.training == mode


class FrozenTheWrongWay(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> "FrozenTheWrongWay":
        return super().train(True)


class MonteCarlo(nn.Dropout):
    def eval(self) -> "MonteCarlo":
        return self

    def train(self, mode: bool = True) -> "MonteCarlo":
        return self


@pytest.mark.parametrize("make", [lambda: FrozenTheWrongWay(6), MonteCarlo])
def test_what_stays_in_train_mode_is_named(make: Make) -> None:
    data = images((6,))
    ann, snn = (
        nn.Sequential(nn.Linear(6, 6), activation(), make(), nn.Linear(6, 3)).double()
        for activation in (lambda: QCFS(4, 1.0), mixing)
    )
    net = MultiStep(snn, 2)
    tools: list[Callable[[], object]] = [lambda: to_lmht(ann, 2, 2), lambda: count_operations(ann, data)]
    for tool in (
        *tools,
        lambda: reparameterize(net),
        lambda: certify(net, [data]),
        lambda: count_operations(net, data),
    ):
        with pytest.raises(ValueError, match=r"2 \((FrozenTheWrongWay|MonteCarlo)\) stays in train mode after eval"):
            tool()
    assert ann.training
    assert ann[0].training


class Separable(nn.Module):
    """Depthwise-separable, in a class of one's own: functional calls, a default argument, one activation in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.depth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False) for _ in range(2))
        self.point = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)) for _ in range(2))
        self.activation, self.head = QCFS(4, 2.0), nn.Linear(16, 5)

    def forward(self, x: Tensor, scale: float = 0.5, features: bool = False) -> Tensor:
        x = self.activation(self.entry(x))
        for depth, point in zip(self.depth, self.point, strict=True):
            x = self.activation(point(depth(x)) * scale + x)
        x = F.avg_pool2d(F.dropout(x, 0.1, self.training), 2)
        x = torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], 1).view(x.shape[0], -1)
        return x if features else self.head(x)


def torchvision_resnet() -> nn.Module:
    network = torchvision.models.resnet18(num_classes=5)
    network.maxpool = nn.AvgPool2d(3, 2, 1)
    replace_modules(network, nn.ReLU, lambda module: QCFS(4, 2.0))
    return network


@pytest.mark.parametrize(("make", "analogue"), [(torchvision_resnet, 1), (Separable, 3)])
def test_networks_as_people_have_them(make: Make, analogue: int) -> None:
    """``analogue``: layers that see no spikes; a pointwise convolution sees what its depthwise one made of them."""
    data = images((3, 32, 32), n=2)
    ann = calibrated(make(), data)
    before = copy.deepcopy(ann.state_dict())
    snn = to_lmht(ann, 2, 2)
    close(snn(data), ann(data))
    assert isinstance(snn, MultiStep)
    check_twin(random_tgims(snn), data, differs=True)
    counted = count_operations(snn, data)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in ann.modules())
    assert (len(counted.macs), len(counted.sops)) == (analogue, layers - analogue)
    assert not counted.uncounted
    torch.testing.assert_close(ann.state_dict(), before, rtol=0, atol=0)


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
        torch.compile,
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module], one_process: None) -> None:
    data = images(LINE)
    ann = around(nn.Linear(6, 5), LINE, lambda: QCFS(4, 1.0))
    snn = MultiStep(around(nn.Linear(6, 5), LINE, mixing), 2)
    close(to_lmht(wrap(ann), 2, 2)(data), ann(data))
    close(reparameterize(wrap(snn))(data), reparameterize(snn)(data))
    assert certify(wrap(snn), [data]) == certify(snn, [data])
    assert count_operations(wrap(snn), data) == count_operations(snn, data)
    assert non_affine(wrap(snn)) == []


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel, torch.compile])
def test_wrappers_inside_are_named(wrap: Callable[[nn.Module], nn.Module], one_process: None) -> None:
    data = images(LINE)
    ann = nn.Sequential(wrap(around(nn.Linear(6, 5), LINE, lambda: QCFS(4, 1.0))), nn.Identity()).eval()
    snn = MultiStep(wrap(around(nn.Linear(6, 5), LINE, mixing)), 2).eval()
    tools: list[Callable[[], object]] = [lambda: to_lmht(ann, 2, 2), lambda: count_operations(ann, data)]
    for tool in (
        *tools,
        lambda: reparameterize(snn),
        lambda: certify(snn, [data]),
        lambda: count_operations(snn, data),
    ):
        with pytest.raises(ValueError, match=r"(0|module) \(\w+\) (is compiled|wraps a part of the network)"):
            tool()


def test_an_averaged_model_inside_is_looked_through() -> None:
    data, ann = images(LINE), around(nn.Linear(6, 5), LINE, lambda: QCFS(4, 1.0))
    close(to_lmht(nn.Sequential(torch.optim.swa_utils.AveragedModel(ann)).eval(), 2, 2)(data), ann(data))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_parts_that_are_compiled() -> None:
    data, ann = images(LINE), around(nn.Sequential(nn.Linear(6, 5)), LINE, lambda: QCFS(4, 1.0))
    expected = ann(data)
    ann[2].compile()
    close(to_lmht(ann, 2, 2)(data), expected)
    count_operations(ann, data)
    assert ann[2]._compiled_call_impl is not None
    with pytest.raises(ValueError, match="Linear is TorchScript"):
        to_lmht(torch.jit.trace(nn.Linear(6, 5), torch.ones(1, 6)), 2, 2)


class Between(nn.Module):
    """Linear layer, activation, any function of (the module, its activation's output), another layer, activation, linear layer."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor], activation: Make) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.one, self.two, self.norm = activation(), activation(), nn.LayerNorm(6)
        self.position = nn.Parameter(torch.rand(6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.two(self.second(self.function(self, self.one(self.first(x))))))


RIGHT: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "sum": lambda m, x: x + x * 0.5 - x / 4,
    "parameter as a factor": lambda m, x: x * m.position,
    "axes": lambda m, x: x.unsqueeze(1).permute(0, 2, 1).transpose(1, 2).flatten(1),
    "parts": lambda m, x: (
        torch.cat([x.chunk(2, 1)[1], torch.split(x, 3, 1)[0]], 1)
        + torch.stack([x.split(3, 1)[0], torch.chunk(x, 2, 1)[0]], 1).flatten(1)
    ),
    "shape": lambda m, x: x.reshape(x.size(0), 2, -1).view(x.shape[0], 6),
    "interpolation": lambda m, x: F.interpolate(x[:, None, :3], scale_factor=2.0)[:, 0],
    "padding": lambda m, x: F.pad(x[:, 1:-1], (1, 1)),
}
OFFSET: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "add": lambda m, x: x + m.position,
    "sub": lambda m, x: x - 0.25,
    "pad": lambda m, x: F.pad(x[:, 1:-1], (1, 1), value=0.5),
}
WRONG: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "matmul": lambda m, x: (x[:, :, None] @ x[:, None]).mean(2),
    "mul": lambda m, x: x * x,
    "sigmoid": lambda m, x: x.sigmoid(),
    "max_pool1d": lambda m, x: F.max_pool1d(x, 3, 1, 1),
    "relu": lambda m, x: F.relu(x),
    "softmax": lambda m, x: x.softmax(1),
    "LayerNorm": lambda m, x: m.norm(x),
}
UNKNOWN: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "layer_norm": lambda m, x: F.layer_norm(x, (6,)),
    "group_norm": lambda m, x: F.group_norm(x, 2),
    "batch_norm": lambda m, x: F.batch_norm(x, m.position, m.position),
    "instance_norm": lambda m, x: F.instance_norm(x[:, None])[:, 0],
    "normalize": lambda m, x: F.normalize(x),
    "linear": lambda m, x: F.linear(x, m.second.weight),
    "mean": lambda m, x: x - x.mean(0),
    "sum": lambda m, x: x + x.sum(),
    "transpose": lambda m, x: x.transpose(0, 1).transpose(1, 0),
    "permute": lambda m, x: x.permute(1, 0).permute(1, 0),
    "T": lambda m, x: x.T.T,
    "flip": lambda m, x: x.flip(0),
    "roll": lambda m, x: x.roll(1, 0),
    "getitem": lambda m, x: torch.cat([x[1:], x[:1]], 1),
    "cumsum": lambda m, x: x.cumsum(0),
    "repeat": lambda m, x: x.repeat(2, 1),
    "mul_": lambda m, x: x.mul_(2),
}


def between(function: Callable[[Between, Tensor], Tensor]) -> tuple[nn.Module, MultiStep]:
    ann, snn = (filled(Between(function, make)) for make in (lambda: QCFS(4, 1.0), mixing))
    return ann, MultiStep(snn, 2)


@pytest.mark.parametrize("name", RIGHT)
def test_linear_operations_are_followed(name: str) -> None:
    (ann, snn), data = between(RIGHT[name]), images((6,))
    close(to_lmht(ann, 2, 2)(data), ann(data))
    check_twin(snn, data, differs=True)
    assert set(count_operations(snn, data).macs) == {"module.first"}


def test_a_spike_that_goes_several_ways_counts_on_each_whatever_its_sign_and_factor() -> None:
    (_, snn), data = between(RIGHT["sum"]), images((6,))
    arriving = sum(float(counts.sum()) for counts in spikes(snn, data, 2)["module.one"])
    assert count_operations(snn, data).sops["module.second"] == 3 * arriving * 6 / len(data)


@pytest.mark.parametrize("name", OFFSET)
def test_offsets_are_converted_and_have_no_twin(name: str) -> None:
    (ann, snn), data = between(OFFSET[name]), images((6,))
    close(to_lmht(ann, 2, 2)(data), ann(data))
    for tool in (lambda: reparameterize(snn), lambda: certify(snn, [data])):
        with pytest.raises(ValueError, match=f"offset of {name}"):
            tool()


@pytest.mark.parametrize("name", WRONG | UNKNOWN)
def test_operations_that_are_not_exact_are_refused_by_name(name: str) -> None:
    (ann, snn), data = between((WRONG | UNKNOWN)[name]), images((6,))
    for tool in (lambda: to_lmht(ann, 2, 2), lambda: reparameterize(snn), lambda: certify(snn, [data])):
        with pytest.raises(ValueError, match=name):
            tool()
    if name in WRONG:
        assert to_if(ann, 2)(data).shape == reparameterize(snn, inexact=True)(data).shape == (5, 3)
        assert count_operations(snn, data).uncounted == [
            part for part in non_affine(snn) if name in ("matmul", "mul", "LayerNorm")
        ]
    else:
        for tool in (lambda: to_if(ann, 2), lambda: count_operations(snn, data)):
            with pytest.raises(ValueError, match=name):
                tool()
