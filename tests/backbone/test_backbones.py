"""Every network: shapes, flat views, parameter counts, seeds."""

import argparse
import subprocess
import sys
from urllib.error import URLError

import pytest
import torch

from palimpsest.backbone.utils.resnet import BasicBlock
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import declared_options

NAMES = [n for n in registry.names("backbone") if "images" in registry.load("backbone", n).INPUT]
SMALL = ["mnistmlp", "convnet", "reduced-resnet18", "resnet32"]


def make(name: str, in_size=(3, 32, 32), classes=10, **more):
    cls = registry.load("backbone", name)
    args = declared_options(cls).parse_args([])
    return cls.from_args(argparse.Namespace(**{**vars(args), **more}), in_size, classes)


@pytest.mark.parametrize("name", NAMES)
def test_what_forward_returns(name):
    net = make(name).eval()
    x = torch.rand(2, 3, 32, 32)
    out, features = net(x), net(x, "features")
    assert out.shape == (2, 10) and features.shape == (2, net.feature_dim)
    torch.testing.assert_close(net.features(x), features)
    torch.testing.assert_close(net.classifier(features), out)
    for both in (net(x, "both"), net(x, "all"), net(x, returnt="full")[:2]):
        torch.testing.assert_close(both[0], out)
        torch.testing.assert_close(both[1], features)
    with pytest.raises(ValueError, match="expected one of out"):
        net(x, "logits")


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("mnistmlp", [(100,)]),
        ("convnet", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("lenet", [(20, 14, 14), (50, 5, 5)]),
        ("reduced-resnet18", [(20, 32, 32), (40, 16, 16), (80, 8, 8), (160, 4, 4)]),
        ("resnet32", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("resnet18-imagenet", [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]),
        ("resnet50", [(256, 8, 8), (512, 4, 4), (1024, 2, 2), (2048, 1, 1)]),
        ("mobilenet-v2", []),
    ],
)
def test_intermediate_maps(name, shapes):
    net = make(name).eval()
    _, features, maps = net(torch.rand(2, 3, 32, 32), "full")
    assert [tuple(m.shape[1:]) for m in maps] == shapes and all(len(m) == 2 for m in maps)
    if maps and maps[-1].ndim == 4 and name != "lenet":
        torch.testing.assert_close(maps[-1].mean((2, 3)), features)


def test_only_mlp_and_lenet_are_tied_to_an_image_size():
    sizes = {name: make(name).input_size for name in NAMES}
    assert sizes.pop("mnistmlp") == sizes.pop("lenet") == (3, 32, 32) and set(sizes.values()) == {None}


@pytest.mark.parametrize("name", NAMES)
def test_grey_images(name):
    assert make(name, (1, 28, 28)).eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_flat_parameters_and_gradients(name):
    net, x = make(name), torch.rand(4, 3, 32, 32)
    flat = net.get_params()
    assert flat.shape == (sum(p.numel() for p in net.parameters()),)
    (0.5 * flat.square().sum()).backward()  # a penalty written with it reaches every weight
    assert all(torch.equal(p.grad, p) for p in net.parameters())
    net.zero_grad()
    net.set_params(flat * 2)
    torch.testing.assert_close(net.get_params(), flat * 2)
    assert not net.get_grads().any()
    net(x).sum().backward()
    grads = net.get_grads()
    assert grads.any()
    net.set_grads(-grads)
    torch.testing.assert_close(net.get_grads(), -grads)
    for write in (net.set_params, net.set_grads):
        with pytest.raises(ValueError, match="parameters"):
            write(flat[:-1])


@pytest.mark.parametrize("name", SMALL)
def test_bytes_are_scaled(name):
    net = make(name).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(net(x), net(x.float() / 255))


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_fixes_the_weights(name):
    flat = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        flat.append(make(name).get_params())
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def resnet18_trunk(f: int) -> int:
    """Parameters without classifier: convolutions without bias, two numbers per BatchNorm channel."""
    stem, first = 27 * f + 2 * f, 4 * (9 * f * f + 2 * f)
    later = sum(9 * w * w // 2 + 3 * 9 * w * w + w * w // 2 + 5 * 2 * w for w in (2 * f, 4 * f, 8 * f))
    return stem + first + later


@pytest.mark.parametrize(
    "name, in_size, classes, expected",
    [
        ("mnistmlp", (1, 28, 28), 10, 784 * 100 + 100 + 100 * 100 + 100 + 1010),
        ("lenet", (1, 28, 28), 10, 431_080),
        ("convnet", (1, 8, 8), 10, 9 * 16 + 32 + 9 * 16 * 32 + 64 + 9 * 32 * 64 + 128 + 650),
        ("resnet18", (3, 32, 32), 10, resnet18_trunk(64) + 5130),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("reduced-resnet18", (3, 32, 32), 100, resnet18_trunk(20) + 16100),
        # published as 465,290 and 471,140: with biases in its 31 convolutions, 1,136 in all
        ("resnet32", (3, 32, 32), 10, 465_290 - 1_136),
        ("resnet32", (3, 32, 32), 100, 471_140 - 1_136),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
        ("resnet18-imagenet", (3, 32, 32), 10, 11_176_512 + 5130),
        ("resnet50", (3, 32, 32), 10, 23_508_032 + 20490),
        ("mobilenet-v2", (3, 32, 32), 10, 2_223_872 + 12810),
        ("efficientnet-b0", (3, 32, 32), 10, 4_007_548 + 12810),
    ],
)
def test_parameter_counts(name, in_size, classes, expected):
    assert sum(p.numel() for p in make(name, in_size, classes).parameters()) == expected


def test_mlp_by_hand():
    net = make("mnistmlp", (1, 1, 2), 1, mlp_hidden_size=2, mlp_hidden_layers=1)
    net.set_params(torch.tensor([1.0, 2, -1, 1, 0.5, -3, 2, 10, 0.25]))
    # hidden: relu([1*3 + 2*4 + .5, -3 + 4 - 3]) = [11.5, 0]; out: 2 * 11.5 + .25
    assert net(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)).item() == pytest.approx(23.25)


def test_convnet_by_hand():
    net = make("convnet", (1, 2, 2), 1, norm="none", width=1)
    one, centre = torch.ones(9), torch.zeros(9).index_fill(0, torch.tensor(4), 1.0)
    third = [torch.cat([a * centre, b * centre]) for a, b in ((1, 9), (2, 9), (-1, 9), (0.5, 9))]
    first, second = [one, torch.zeros(1)], [one, -one, torch.tensor([0.5, 0])]
    classifier = torch.tensor([1.0, 2, 3, 4, 0.25])
    net.set_params(torch.cat([*first, *second, *third, torch.tensor([0.0, 0, 0, 1]), classifier]))
    # Every window covers all of 2 x 2: the maps are 10 everywhere; [40.5, 0] at 1 x 1; [40.5, 81, 0, 21.25].
    out, features, maps = net(torch.tensor([1.0, 2, 3, 4]).view(1, 1, 2, 2), "full")
    assert maps[0].flatten().tolist() == [10] * 4 and maps[1].flatten().tolist() == [40.5, 0]
    assert features.tolist() == [[40.5, 81, 0, 21.25]]
    assert out.item() == 40.5 + 2 * 81 + 4 * 21.25 + 0.25


@pytest.mark.parametrize("padded", [True, False])
def test_shortcuts_by_hand(padded):
    block = BasicBlock(1, 2, stride=2, padded=padded).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    if not padded:
        block.shortcut[0].weight.data[:] = torch.tensor([1.0, 0]).view(2, 1, 1, 1)
    out = block(torch.arange(16.0).view(1, 1, 4, 4))
    # BatchNorm's epsilon, 1e-5 beside a variance of 1, shrinks the convolved shortcut by half of that.
    torch.testing.assert_close(out, torch.tensor([[[[0.0, 2], [8, 10]], [[0, 0], [0, 0]]]]), rtol=1e-5, atol=0)
    assert (block.shortcut is None) is padded


def test_norms_of_the_convnet():
    x = torch.rand(4, 1, 8, 8)
    for norm, alone in (("group", True), ("none", True), ("batch", False)):
        net = make("convnet", (1, 8, 8), norm=norm).train()
        assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5) is alone
    with pytest.raises(UserError, match="--width 6: --norm group needs a multiple of 4"):
        make("convnet", width=6)
    assert make("convnet", width=6, norm="batch").feature_dim == 24


def test_the_linear_layers_of_the_mlp_are_xavier_uniform():
    net = make("mnistmlp", (1, 28, 28))
    for layer in (*net.layers, net.classifier):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound


def test_torchvision_is_imported_on_use_only():
    code = "import sys, backbone.resnet50, backbone.mobilenet_v2; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT).returncode == 0


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        UserError, match=r"mobilenet_v2.*put the file into .*checkpoints, or drop --pretrained"
    ) as error:
        make("mobilenet-v2", pretrained=True)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_weights_in_the_cache(monkeypatch, tmp_path):
    """A file put where the message says is used; a damaged one is named."""
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / MobileNet_V2_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    stored = mobilenet_v2().state_dict()
    torch.save(stored, file)
    trunk = make("mobilenet-v2", pretrained=True).trunk.state_dict()
    assert trunk and all(torch.equal(value, stored[key]) for key, value in trunk.items())
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>404</html>", b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{file.name} cannot be read .*delete the file"):
            make("mobilenet-v2", pretrained=True)
