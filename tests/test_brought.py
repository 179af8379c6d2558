"""What reviewers brought: forwards that the graph tools took for something else; each is right now, or refused by name."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lmht
from lmht import fusion
from lmht.conversion import to_lmht
from lmht.energy import count_operations
from lmht.graph import non_affine
from lmht.networks import MultiStep, build
from lmht.reparameterize import certify, foretell, reparameterize

Forward = Callable[["Three", Tensor], Tensor]


def qcfs() -> nn.Module:
    return lmht.QCFS(4, 1.0)


def neuron() -> nn.Module:
    return lmht.LMHT(2, 2, theta=0.25, v0=0.125)


class Three(nn.Module):
    """Linear layers a, b, c, d with activations; the forward is given."""

    def __init__(self, activation: Callable[[], nn.Module], forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act1, self.b, self.act2 = nn.Linear(6, 6), activation(), nn.Linear(6, 6), activation()
        self.c, self.d = nn.Linear(6, 3), nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([1.0, 0, 0, 1, 0, 0]))
        self.w = nn.Parameter(torch.randn(6, 6))
        self.layers = [self.a, self.act1, self.b, self.act2, self.c]
        self.function = lambda x: self.act1(self.a(x))
        self.kept: list[Tensor] = []
        self.path = forward
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.path(self, x)


def listed(m: Three, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = layer(x)
    return x


def rated(m: Three, x: Tensor) -> Tensor:
    return m.c(m.act1(m.a(x)) / m.act1.levels)


def asked(m: Three, x: Tensor) -> Tensor:
    y = m.act1(m.a(x))
    return m.c(y if isinstance(m.act1, lmht.QCFS | lmht.LMHT) and m.act1.levels > 1 else 2 * y)


def through_a_view(m: Three, x: Tensor) -> Tensor:
    h = m.act1(m.a(x))
    y = m.c(h)
    v = y.view(-1, 3)
    v += m.d(h)
    return y


def listing(m: Three, x: Tensor) -> Tensor:
    m.kept.append(y := m.act1(m.a(x)))
    return m.c(y)


IMAGES = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("forward", [listed, lambda m, x: m.c(m.function(x)), rated], ids=["listed", "lambda", "rated"])
def test_a_conversion_that_the_forward_does_not_take_is_refused(forward: Forward) -> None:
    with pytest.raises(ValueError, match=r"no conversion: .*activation"):
        to_lmht(Three(qcfs, forward), 2, 2)


@pytest.mark.parametrize("forward", [listed, rated, asked])
def test_a_twin_that_the_forward_does_not_take_is_refused(forward: Forward) -> None:
    net = MultiStep(Three(neuron, forward), 2)
    for tool in (reparameterize, lambda net: certify(net, [IMAGES]), lambda net: foretell(net, IMAGES)):
        with pytest.raises(ValueError, match="activation"):
            tool(net)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (through_a_view, "iadd .*is not known"),
        (lambda m, x: m.c(m.act2(torch.add(m.b(m.act1(m.a(x))), other=1.0))), "the offset of add .*can't be cut"),
        (lambda m, x: m.c(m.act2(m.b(m.act1(m.a(x)) * m.b.bias))), "b.bias is used in two places"),
        (lambda m, x: m.c(m.act2(m.b(m.act1(m.a(x)) * m.b(m.mask)))), "b is used in two places"),
    ],
    ids=["in a view", "an offset by name", "a factor", "on a constant"],
)
def test_no_twin(forward: Forward, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reparameterize(MultiStep(Three(neuron, forward), 2))


def by_name(m: Three, x: Tensor) -> Tensor:
    h = m.act1(m.a(x))
    y = torch.flatten(input=m.b(h), start_dim=1)
    y += m.d2(h)
    return m.c(m.act2(y))


def test_a_view_by_name_and_a_weights_dtype_are_fine() -> None:
    def typed(m: Three, x: Tensor) -> Tensor:
        assert m.c.weight.dtype is not None
        return by_name(m, x)

    for forward in (by_name, typed):
        net = Three(neuron, forward)
        net.d2 = nn.Linear(6, 6).double()
        snn = MultiStep(net, 2)
        expected, _ = foretell(snn, IMAGES)
        torch.testing.assert_close(reparameterize(snn)(IMAGES), expected)


SCALES, LAYERS = [2], {"last": "dim"}


class Named(nn.Module):
    """Layers that are called as methods of tensors are, and arguments beside the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size, self.act, self.add, self.dim = nn.Linear(6, 6), qcfs(), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.flatten, self.view = qcfs(), nn.Parameter(torch.rand(6))
        self.double().eval()

    def forward(
        self,
        images: Tensor,
        *more: Any,
        shape: tuple[int, ...] = (6, 6),
        scales: list[int] = SCALES,
        layers: dict[str, str] = LAYERS,
        early: bool = False,
    ) -> Tensor:
        assert not more
        y = self.act(self.size(images))[()]
        y = y if early else self.flatten(self.add(y) * scales[0] + self.view)
        return getattr(self, layers["last"])(y.reshape(-1, shape[1]))


def test_names_and_arguments_of_all_kinds() -> None:
    net = Named()
    torch.testing.assert_close(to_lmht(net, 2, 2)(IMAGES), net(IMAGES), rtol=1e-12, atol=1e-12)
    assert count_operations(net, IMAGES).macs == {"size": 36, "dim": 18}

    class Two(nn.Module):
        def forward(self, images: Tensor, mask: Tensor, *, scale: float) -> Tensor:
            return images * mask * scale

    with pytest.raises(ValueError, match="Two takes more than one input: mask, scale"):
        to_lmht(Two(), 2, 2)


def test_an_image_may_change_in_place() -> None:
    def shifted(m: Three, x: Tensor) -> Tensor:
        y = x.clone()
        y.sub_(0.5)
        return m.c(m.act1(m.a(y)))

    net = MultiStep(Three(neuron, shifted), 2)
    counted = count_operations(net, IMAGES)
    assert counted.sops["module.c"] == pytest.approx(fed(net, "module.c", IMAGES), rel=1e-12)
    assert counted.macs["module.a"] == 2 * 36
    assert len(counted.uncounted) == 1


def test_rows_that_a_view_mixes_are_not_known() -> None:
    def mixing(m: Three, x: Tensor) -> Tensor:
        y = m.act1(m.a(x))
        return m.c((y.view(y.shape[1], -1) * m.mask[:, None]).view(y.shape[0], 6))

    with pytest.raises(ValueError, match=r"view .*is not known"):
        to_lmht(Three(qcfs, mixing), 2, 2)


def fed(net: MultiStep, layer: str, images: Tensor) -> float:
    """Spikes that arrive at a layer of three outputs, times three, an image: by a hook."""
    seen: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        net(images)
    handle.remove()
    return 3 * float(sum((x / 0.25).abs().round().sum() for x in seen)) / len(images)


def summed(m: Three, x: Tensor) -> Tensor:
    h = m.act1(m.a(x))
    return m.c(torch.add(h, other=m.act2(m.b(h))))


@pytest.mark.parametrize(
    "forward",
    [
        summed,
        lambda m, x: m.c(m.act1(m.a(x)) * m.mask),
        lambda m, x: m.c(sum([m.act1(m.a(x)), m.act2(m.b(m.act1(m.a(x))))])),
    ],
    ids=["by name", "a factor of zeros", "python's sum"],
)
def test_what_arrives_is_counted(forward: Forward) -> None:
    net = MultiStep(Three(neuron, forward), 2)
    assert count_operations(net, IMAGES).sops["module.c"] == pytest.approx(fed(net, "module.c", IMAGES), rel=1e-12)


def in_place(m: Three, x: Tensor) -> Tensor:
    y = m.act1(m.a(x))
    y.mul_(m.mask)
    return m.c(y)


@pytest.mark.parametrize("forward", [in_place, lambda m, x: m.c(torch.matmul(input=m.act1(m.a(x)), other=m.w))])
def test_what_may_have_changed_is_not_counted(forward: Forward) -> None:
    with pytest.raises(ValueError, match=r"can't count module.c .*(mul_|matmul)"):
        count_operations(MultiStep(Three(neuron, forward), 2), IMAGES)


def test_products_by_name_are_told() -> None:
    def attention(m: Three, x: Tensor) -> Tensor:
        y = m.act1(m.a(x)).unsqueeze(1)
        return F.scaled_dot_product_attention(query=y, key=y, value=y).flatten(1)

    assert count_operations(MultiStep(Three(neuron, attention), 2), IMAGES).uncounted


def test_a_replaced_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Three(qcfs, rated)
    monkeypatch.setattr(net, "forward", net.c.forward)
    with pytest.raises(ValueError, match="forward of its own"):
        count_operations(net, IMAGES)


def test_a_trace_leaves_what_a_forward_keeps() -> None:
    net = Three(qcfs, listing)
    net(IMAGES)
    to_lmht(net, 2, 2)  # what is kept can be differentiated, and is not copied with its graph
    assert len(net.kept) == 1
    assert isinstance(net.kept[0], Tensor)


def test_a_residual_meets_an_empty_sequential() -> None:
    x, residual = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(fusion.chain([nn.Sequential()], x, residual), x + residual)
    norm = nn.BatchNorm1d(3).eval()
    for empty in (nn.Sequential(), nn.Sequential(nn.Sequential())):
        assert torch.equal(fusion.chain([norm, nn.ReLU(), empty], x, residual), F.relu(norm(x) + residual))


def test_a_stem_that_shares_its_weight_is_not_scaled() -> None:
    net = build("ResNet-20", qcfs, classes=10, width=0.25)
    convolutions = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features == 4]
    convolutions[-1].weight = convolutions[0].weight
    with pytest.raises(ValueError, match="shares a weight"):
        to_lmht(net, 2, 2, start="algorithm1")


def test_nir_sums() -> None:
    pytest.importorskip("nir", reason="nir is not installed")
    from lmht.interop.nir import to_nir

    def sums(m: Three, x: Tensor) -> Tensor:
        return m.c(m.act2(sum([m.b(m.act1(m.a(x))), m.d2(x)]) + 0))

    def weighed(m: Three, x: Tensor) -> Tensor:
        return m.c(m.act2(torch.add(m.b(m.act1(m.a(x))), m.d2(x), alpha=2)))

    graphs = []
    for forward in (sums, weighed):
        net = Three(lambda: lmht.IF(2), forward)
        net.d2 = nn.Linear(6, 6).double()
        graphs.append(MultiStep(net, 2))
    into = {source for source, target in to_nir(graphs[0], IMAGES).edges if target == "module.act2.v"}
    assert into == {"module.b", "module.d2", "module.act2.reset"}
    with pytest.raises(ValueError, match="scales by alpha"):
        to_nir(graphs[1], IMAGES)
    with pytest.raises(ValueError, match=r"takes no images of shape \[4, 5\], torch.float64: .*cannot be multiplied"):
        to_nir(graphs[0], IMAGES[:, :5])


def test_steps_and_batches_are_checked() -> None:
    for steps in (0, 2.0, True):
        with pytest.raises(ValueError, match=r"steps .T. must be an integer >= 1"):
            MultiStep(nn.Linear(6, 3), steps)
    net = MultiStep(Three(neuron, lambda m, x: m.c(m.act1(m.a(x)))), 2)
    with pytest.raises(ValueError, match=r"never calls module\.act2"):
        certify(net, [IMAGES])
    nothing: Any = None
    several: Any = [IMAGES]
    with pytest.raises(ValueError, match="got NoneType"):
        certify(net, nothing)
    with pytest.raises(ValueError, match="foretell takes a batch of images, got list"):
        foretell(net, several)


def row_number(m: Three, x: Tensor) -> Tensor:
    rows = torch.linspace(0, 1, x.shape[0], dtype=x.dtype)[:, None]
    return m.c(m.act2(m.b(torch.cat([m.act1(m.a(x))[:, :5], rows], 1))))


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda x: x * (5 / x.shape[-2]), "mul"),
        (lambda x: x / x.size(-2), "truediv"),
        (lambda x: F.avg_pool1d(x.transpose(-1, -2), 3, 1, 1).transpose(-1, -2), "transpose"),
        (lambda x: F.pad(x, (0, 0, 1, -1)) + x, "pad"),
        (lambda x: F.pad(x[:, :, None], (0, 0, 0, 0, 1, -1)).flatten(1) + x, "pad"),
        (nn.ZeroPad2d((0, 0, 1, -1)), "ZeroPad2d"),
        (lambda x: x - x.mean(-2, keepdim=True), "mean"),
        (lambda x: x.sum(1)[:, None] + x.sum(1).softmax(-1)[:, None], "softmax"),
        (nn.Flatten(-2), "Flatten"),
        (lambda x: x.chunk(2, -2)[0], "chunk"),
        (lambda x: x.reshape(x.shape[0] // 2, -1).reshape(-1, 6), "reshape"),
        (lambda x: x.reshape(x.shape[::-1]).reshape(-1, 6), "reshape"),
        (lambda x: F.pad(x, (x.shape[0], 0))[:, :6], "pad"),
        (lambda x: F.avg_pool1d(x, 2 * x.shape[0] - 1, 1, x.shape[0] - 1), "avg_pool1d"),
        (lambda x: F.adaptive_avg_pool1d(x, x.shape[0]), "adaptive_avg_pool1d"),
        (lambda x: F.interpolate(x[:, None], size=x.shape[:1])[:, 0], "interpolate"),
        (lambda x: x.view(-1, x.shape[0]).view(x.shape[0], 6), "view"),
        (lambda x: (x * torch.ones(2, 1, 6).double()).reshape(x.shape[0], 12)[:, :6], "mul"),
        (lambda x: (x + torch.ones(6).double().expand(2, 1, 6)).reshape(x.shape[0], 12)[:, :6], "add"),
        (lambda x: (torch.ones(2, 6).double()[:, None] - x).reshape(x.shape[0], 12)[:, :6], "sub"),
    ],
)
def test_an_axis_from_the_end_may_be_the_rows(between: Callable[[Tensor], Tensor], named: str) -> None:
    """Of ``[N, C]`` the last but one is."""

    def net(activation: Callable[[], nn.Module]) -> nn.Module:
        made = Three(activation, lambda m, x: m.c(m.act2(m.b(m.between(m.act1(m.a(x)))))))
        made.between = between
        return made

    for tool in (lambda: to_lmht(net(qcfs), 2, 2), lambda: reparameterize(MultiStep(net(neuron), 2))):
        refused = (
            rf"{named}\b.* is not known to be applied step by step|can't be traced by torch\.fx: {named}"  # before 2.9
        )
        with pytest.raises(ValueError, match=refused):
            tool()


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.pad(x, (1, 1, 1, -1)),
        lambda x: F.interpolate(x[:, :, 1:], size=x.shape[-2:]),
        lambda x: (
            x + F.avg_pool2d(x, x.size()[2:] if torch.__version__ >= "2.9" else 6)
        ),  # torch.fx itself can't before
        lambda x: x * torch.ones(1, 3, 1, 1) - torch.ones(3, 1, 1),
        nn.ZeroPad2d(1),
        lambda x: x * (1 / x.shape[-2]),
        lambda x: x.transpose(-1, -2),
        lambda x: x.flatten(-2).unflatten(-1, (6, 6)),
        lambda x: x.flatten(2).transpose(-1, -2).reshape(x.shape[0], -1).reshape(x.shape[:1] + x.shape[1:2] + (6, 6)),
        lambda x: x[:, :, None].mean((-3, -2), keepdim=True)[:, :, 0] + x,
        lambda x: torch.stack([x, x], -3)[:, :, 0],
        lambda x: x.chunk(3, -3)[0].flatten(-3).unflatten(1, (1, 6, 6)),
    ],
)
def test_of_images_it_is_not(between: Callable[[Tensor], Tensor]) -> None:
    """What a convolution takes or gives is ``[N, C, H, W]``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.act1, self.second = nn.Conv2d(3, 3, (3, 4), padding=1), qcfs(), nn.LazyConv2d(4, 3)
            self.act2, self.last = qcfs(), nn.LazyLinear(3)
            self.between = between

        def forward(self, x: Tensor) -> Tensor:
            x = self.act1(self.first(F.pad(x, (1, 0, 1, -1))))
            return self.last(self.act2(self.second(self.between(x))).flatten(1))

    images = torch.randn(5, 3, 6, 6)
    net = Net()
    net(images)
    net, images = net.double().eval(), images.double()
    torch.testing.assert_close(to_lmht(net, 2, 2)(images), net(images), rtol=1e-12, atol=1e-12)


def test_rows_of_one_sample_are_followed_together() -> None:
    net = MultiStep(Three(neuron, lambda m, x: m.c(m.act2(m.act1(m.a(x)).reshape(-1, 3) * 0.5).reshape(-1, 6))), 2)
    logits, same = foretell(net, IMAGES)
    torch.testing.assert_close(logits, reparameterize(net)(IMAGES))
    assert same.shape == (4,)
    net = MultiStep(Three(neuron, lambda m, x: m.c(m.act2(m.act1(m.a(x)).reshape(-1, 12) * 0.5).reshape(-1, 6))), 2)
    with pytest.raises(ValueError, match="folded input must be"):  # its only image has no other to be joined with
        foretell(net, IMAGES)


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (lambda m, x: m.c(x) if x.sum() > 0 else x, "m.c.x. if x.sum.. > 0 else x"),
        (lambda m, x: m.c(torch.stack([row * row for row in m.act1(m.a(x))])), "for row in m.act1"),
    ],
)
def test_the_line_that_can_not_be_traced_is_named(forward: Forward, line: str) -> None:
    with pytest.raises(
        ValueError, match=rf"can't be traced .*{Path(__file__).name}, line \d+: .*{line}.*may not decide"
    ):
        to_lmht(Three(qcfs, forward), 2, 2)


def test_an_ann_sees_no_spikes_whatever_it_does() -> None:
    ann = Three(nn.ReLU, lambda m, x: m.c(m.act2(m.b(m.act1(m.a(x)).clamp(max=1)))))
    counted = count_operations(ann, IMAGES)
    assert counted.macs == {"a": 36, "b": 36, "c": 18}
    assert counted.uncounted == ["clamp"]


def test_what_counts_rows_stands_beside_no_data() -> None:
    with pytest.raises(
        ValueError, match=r"cat is not known|can't be traced by torch\.fx: linspace"
    ):  # the latter on torch 2.6
        to_lmht(Three(qcfs, row_number), 2, 2)
    repeated = Three(
        qcfs,
        lambda m, x: m.c(m.act2(m.b(m.act1(torch.cat([m.a(x)[:, :3], m.w[:, :3].repeat(x.shape[0] // 6, 1)], 1))))),
    )
    with pytest.raises(ValueError, match="cat is not known"):
        to_lmht(repeated, 2, 2)


def test_a_layer_named_split() -> None:
    net = Three(qcfs, lambda m, x: m.c(m.act1(m.a(x))[:, :] + m.split(x)[0]))
    net.split = nn.Linear(6, 6).double()
    with pytest.raises(ValueError, match="getitem is not known"):
        to_lmht(net, 2, 2)


def test_the_network_is_left_as_it_was() -> None:
    """Computed weights are copied, and what a forward counts or keeps is put back after the trace."""

    def counting(m: Three, x: Tensor) -> Tensor:
        m.calls += 1
        m.buffer += 1
        h = m.act1(m.a(x))
        m.nested["h"].append([h])
        m.features.add(h)
        m.last.append(h)
        return m.c(m.act2(m.b(h)))

    net = Three(neuron, counting)
    net.calls, net.nested, net.features, net.last = 0, {"h": []}, set(), deque(maxlen=1)
    net.register_buffer("buffer", torch.zeros(1))
    kept = net.a.weight.detach().clone()
    del net.a.weight
    net.a.v = nn.Parameter(kept.clone())
    net.a.weight = net.a.v * 1.0
    snn = MultiStep(net, 2)
    with torch.no_grad():
        snn(IMAGES)
    snn(IMAGES)
    twin = reparameterize(snn)
    certify(snn, [IMAGES])
    assert non_affine(snn) == []  # traces the network itself, not a copy
    assert torch.equal(net.a.weight, kept)
    assert net.calls == net.buffer.item() == 2
    assert len(net.nested["h"]) == len(net.features) == 2
    assert all(isinstance(one, Tensor) for [one] in net.nested["h"])
    assert isinstance(net.last[0], Tensor)
    torch.testing.assert_close(twin(IMAGES), foretell(snn, IMAGES)[0])

    net.lock = Lock()
    with pytest.raises(ValueError, match="MultiStep can't be copied: cannot pickle"):
        reparameterize(snn)


def test_torchscript_inside_is_named() -> None:
    net = nn.Sequential(torch.jit.script(nn.Linear(6, 6)), qcfs(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"0 \(RecursiveScriptModule\) is TorchScript"):
        to_lmht(net, 2, 2)
