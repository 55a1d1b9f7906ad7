"""Every network: shapes, flat views, parameter counts, seeds."""

import argparse
from urllib.error import URLError

import pytest
import torch

from utils import registry
from utils.config import declared_options
from utils.errors import UserError

NAMES = registry.names("backbone")
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


@pytest.mark.parametrize("name", NAMES)
def test_grey_images(name):
    assert make(name, (1, 28, 28)).eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_flat_parameters_and_gradients(name):
    net, x = make(name), torch.rand(4, 3, 32, 32)
    flat = net.get_params()
    assert flat.shape == (sum(p.numel() for p in net.parameters()),) and not flat.requires_grad
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


@pytest.mark.parametrize(
    "name, in_size, classes, expected",
    [
        ("mnistmlp", (1, 28, 28), 10, 784 * 100 + 100 + 100 * 100 + 100 + 1010),
        ("convnet", (1, 8, 8), 10, 9 * 16 + 32 + 9 * 16 * 32 + 64 + 9 * 32 * 64 + 128 + 650),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet32", (3, 32, 32), 10, 463_504 + 650),
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


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"mobilenet_v2.*put the file into .*drop --pretrained"):
        make("mobilenet-v2", pretrained=True)
