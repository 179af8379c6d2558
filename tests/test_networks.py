"""Architectures: the paper's sizes by closed form, shapes, the time axis, and what is not affine."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import lmht
from lmht.energy import count_operations
from lmht.graph import non_affine, presynaptic
from lmht.networks import ARCHITECTURES, MultiStep, build


def conv_bn(i: int, o: int, k: int = 3, bias: int = 0) -> int:
    return k * k * i * o + bias * o + 2 * o


def linear(i: int, o: int) -> int:
    return i * o + o


def residual(stem: int, stages: list[tuple[int, int]], strided_first: bool = False) -> int:
    total, channels = conv_bn(3, stem), stem
    for blocks, outputs in stages:
        for _ in range(blocks):
            shortcut = conv_bn(channels, outputs, 1) if channels != outputs else 0
            total += conv_bn(channels, outputs) + conv_bn(outputs, outputs) + shortcut
            channels = outputs
    return total


def vgg(groups: list[int], bias: int) -> int:
    total, channels = 0, 3
    for convolutions, outputs in zip(groups, (64, 128, 256, 512, 512), strict=True):
        for _ in range(convolutions):
            total += conv_bn(channels, outputs, bias=bias)
            channels = outputs
    return total


def transformer(d: int, classes: int) -> int:
    patches = (
        conv_bn(3, d // 8) + conv_bn(d // 8, d // 4) + conv_bn(d // 4, d // 2) + conv_bn(d // 2, d) + conv_bn(d, d)
    )
    block = 4 * (linear(d, d) + 2 * d) + linear(d, 4 * d) + 8 * d + linear(4 * d, d) + 2 * d
    return patches + 4 * block + linear(d, classes)


EXPECTED = {
    "ResNet-18": residual(64, [(2, 64), (2, 128), (2, 256), (2, 512)]) + linear(512, 100),
    "ResNet-19": residual(128, [(3, 128), (3, 256), (2, 512)]) + linear(512, 256) + linear(256, 100),
    "ResNet-20": residual(16, [(3, 16), (3, 32), (3, 64)]) + linear(64, 100),
    "ResNet-34": residual(64, [(3, 64), (4, 128), (6, 256), (3, 512)]) + linear(512, 100),
    "MS-ResNet-18": residual(64, [(2, 64), (2, 128), (2, 256), (2, 512)]) + linear(512, 100),
    "MS-ResNet-34": residual(64, [(3, 64), (4, 128), (6, 256), (3, 512)]) + linear(512, 100),
    "VGG-13": vgg([2, 2, 2, 3, 1], 0) + linear(512, 100),
    "VGG-16": vgg([2, 2, 3, 3, 3], 1) + linear(512, 4096) + linear(4096, 4096) + linear(4096, 100),
    "Transformer-4-384": transformer(384, 100),
}


@pytest.mark.parametrize("architecture", EXPECTED)
def test_full_size_parameter_count(architecture: str) -> None:
    network = build(architecture, nn.ReLU, classes=100)
    assert sum(p.numel() for p in network.parameters()) == EXPECTED[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_static_image_passes_the_stem_once_and_gives_the_mean_of_the_steps(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture, lambda: lmht.LMHT(2, 3), classes=7, steps=3, width=1 / 16, in_channels=1).eval()
    seen: list[int] = []
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    images = torch.randn(2, 1, 32, 32)
    steps = network.step_logits(images)
    assert steps.shape == (3, 2, 7)
    assert torch.equal(network(images), steps.mean(0))
    assert seen == [2, 2]


@pytest.mark.parametrize(
    ("make", "causal"),
    [
        (lambda: lmht.LMHT(2, 2, theta=0.25), False),
        (lambda: lmht.LMHT(2, 2, theta=0.25, tgim=lmht.FreeTGIM(2, "identity")), True),
        (lambda: lmht.MHT(2, 2, theta=0.25), True),
    ],
    ids=["T-GIM", "identity", "no T-GIM"],
)
def test_the_t_gim_is_not_causal(make: Callable[[], nn.Module], causal: bool) -> None:
    """What step 1 says depends on the frame of step 2, so "accuracy at step t < T" is no any-time accuracy."""
    torch.manual_seed(0)
    network = MultiStep(nn.Sequential(nn.Linear(8, 16), make(), nn.Linear(16, 3)), steps=2, frames=True)
    frames = torch.randn(2, 4, 8)
    first, second = network.step_logits(frames)
    first_again, other = network.step_logits(torch.stack([frames[0], torch.randn(4, 8)]))
    assert torch.equal(first, first_again) == causal
    assert not torch.equal(second, other)


@pytest.mark.parametrize("architecture", ["ResNet-18", "MS-ResNet-18", "VGG-13", "Transformer-4-384"])
def test_event_frames_enter_one_a_step(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(
        architecture, lambda: lmht.IF(4, theta=0.1), classes=3, steps=4, width=1 / 16, in_channels=2, frames=True
    )
    frames = torch.randn(4, 2, 2, 48, 48)
    assert network(frames).shape == (2, 3)
    assert not torch.equal(network.step_logits(frames)[0], network.step_logits(frames.flip(0))[0])


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("ResNet-18", {}, []),
        ("ResNet-34", {"stem": "imagenet"}, ["body.1 (MaxPool2d)"]),
        ("ResNet-34", {"stem": "imagenet-avg"}, []),
        ("MS-ResNet-34", {"stem": "imagenet"}, []),
        ("VGG-16", {}, []),
        (
            "Transformer-4-384",
            {"depth": 1},
            ["body.0.split.5 (MaxPool2d)", "body.0.split.8 (MaxPool2d)", *["matmul in body.1.attention"] * 2],
        ),
    ],
)
def test_operations_that_are_not_affine_are_found(architecture: str, options: dict, expected: list[str]) -> None:
    network = build(architecture, lambda: lmht.IF(2), classes=3, steps=2, width=1 / 16, **options)
    assert non_affine(network) == expected


@pytest.mark.parametrize("architecture", ["ResNet-18", "MS-ResNet-18", "VGG-16", "Transformer-4-384"])
def test_every_layer_but_the_first_is_driven_by_spikes(architecture: str) -> None:
    network = build(architecture, lambda: lmht.IF(2), classes=3, steps=2, width=1 / 16)
    sources = list(presynaptic(network).values())
    assert sources[0] == []
    assert all(sources[1:])


def test_sops_are_spikes_times_fan_out() -> None:
    """Against the definition: one operation for each spike and each connection, found by pushing ones through the layer."""
    torch.manual_seed(0)
    network = build("ResNet-18", lambda: lmht.LMHT(2, 2, theta=0.3), classes=3, steps=2, width=1 / 16).double()
    images = torch.randn(3, 3, 16, 16).double()
    expected: dict[str, float] = {}

    def count(name: str):
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            spikes = inputs[0].detach() / 0.3
            ones = torch.ones_like(layer.weight)
            if isinstance(layer, nn.Conv2d):
                out = nn.functional.conv2d(spikes, ones, None, layer.stride, layer.padding)
            else:
                out = nn.functional.linear(spikes, ones)
            expected[name] = float(out.sum()) / 3

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "stem.0.0":
            module.register_forward_hook(count(name))
    network.eval()(images)
    counted = count_operations(network, images)
    assert counted.sops == pytest.approx(expected, rel=1e-12)
    assert counted.macs == {"stem.0.0": 4 * 16 * 16 * 27}


def test_macs_of_an_ann_are_textbook() -> None:
    network = build("ResNet-18", nn.ReLU, classes=10)
    operations = count_operations(network, torch.randn(1, 3, 32, 32))
    assert operations.total_sops == 0
    stages = [(64, 32), (128, 16), (256, 8), (512, 4)]
    convs, channels = 27 * 64 * 32**2, 64
    for outputs, size in stages:
        convs += (9 * channels * outputs + 27 * outputs * outputs) * size**2 + (
            channels != outputs
        ) * channels * outputs * size**2
        channels = outputs
    assert operations.total_macs == convs + 5120


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"the network takes images \[N, 3, H, W\], got \(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"got \(3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), float("nan")), "the images hold NaN"),
    ],
)
def test_bad_images_give_one_clear_error(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("ResNet-20", nn.ReLU, classes=3, width=0.25)(images)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'ResNet-50'; known: .*ResNet-18, "):
        build("ResNet-50", nn.ReLU, classes=3)
    with pytest.raises(ValueError, match="stem must be 'small', 'imagenet' or 'imagenet-avg', got 'large'"):
        build("ResNet-18", nn.ReLU, classes=3, stem="large")


@pytest.mark.parametrize("architecture", ["ResNet-20", "Transformer-4-384"])
def test_per_sample_gradients(architecture: str) -> None:
    """By torch.func, all at once, as by one backward pass for each image."""
    torch.manual_seed(0)
    net = build(architecture, lambda: lmht.LMHT(2, 2), classes=10, steps=2, width=0.25).double().eval()
    images, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 2, 3])
    names, values = zip(*net.named_parameters(), strict=True)

    def loss(values: tuple[Tensor, ...], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(net, dict(zip(names, values, strict=True)), (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    together = vmap(grad(loss), (None, 0, 0))(values, images, labels)
    for i, one in enumerate(zip(images, labels, strict=True)):
        for got, wanted in zip(together, torch.autograd.grad(loss(values, *one), values), strict=True):
            torch.testing.assert_close(got[i], wanted, rtol=1e-9, atol=1e-13)
