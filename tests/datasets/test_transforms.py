"""Batched transforms against torchvision and Pillow."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision import transforms as T

from palimpsest.datasets.utils.transforms import (
    Augment,
    Denormalize,
    Normalize,
    TrainTransform,
    crop_flip,
    rotate,
    to_float,
)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random uint8 images without zeros, so that padding shows."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- to_float, Normalize, Denormalize


def test_to_float_is_to_tensor():
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(to_float(x), T.ToTensor()(Image.fromarray(x[0].numpy())))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = torch.rand(2, 3, 4, 4).to(dtype)
        assert to_float(y) is y
    with pytest.raises(TypeError, match="int64"):
        to_float(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (3, 8, 8)])
def test_normalize_is_torchvisions_to_the_bit_and_can_be_undone(shape):
    x, y = images(*shape), torch.rand(shape)
    before, kept, theirs = x.clone(), y.clone(), T.Normalize(MEAN, STD)
    out = Normalize(MEAN, STD)(x)
    assert torch.equal(out, theirs(x.float() / 255)) and torch.equal(Normalize(MEAN, STD)(y), theirs(y))
    torch.testing.assert_close(Denormalize(MEAN, STD)(out), to_float(x))
    assert torch.equal(x, before) and torch.equal(y, kept)
    # Without statistics only the range changes.
    assert torch.equal(Normalize()(x), to_float(x)) and torch.equal(Denormalize()(y), y)


def test_statistics_made_in_inference_mode_serve_training_later():
    normalize = Normalize(MEAN, STD)
    with torch.inference_mode():
        normalize(images(1, 3, 4, 4))
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    normalize(x).sum().backward()
    assert torch.allclose(x.grad[0, :, 0, 0], 1 / torch.tensor(STD))


@pytest.mark.parametrize("arguments", [((0.5,), None), (None, (0.5,)), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_impossible_statistics_are_refused(arguments):
    with pytest.raises(ValueError):
        Normalize(*arguments)


# ---- crop_flip and Augment


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "padding"), [((17, 3, 32, 32), 4), ((9, 1, 28, 20), 2), ((4, 3, 5, 7), 0)])
def test_crop_flip_is_torchvisions(shape, padding, dtype):
    x = images(*shape).to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # a view will do
    rng = torch.Generator().manual_seed(1)
    top, left = torch.randint(2 * padding + 1, (2, shape[0]), generator=rng)
    flip = torch.randint(2, (shape[0],), generator=rng).bool()
    expected = []
    for i in range(shape[0]):
        one = TF.crop(TF.pad(x[i], padding), int(top[i]), int(left[i]), *shape[2:])
        expected.append(TF.hflip(one) if flip[i] else one)
    out = crop_flip(x, top, left, flip, padding)
    assert out.dtype == dtype and torch.equal(out, torch.stack(expected))


def test_augment_draws_are_uniform_and_independent():
    # One bright pixel in the middle shows where each window was cut and whether it was mirrored: column 4 of 9 is the
    # centre, so a second pixel above it, one column to the right, tells the sides apart.
    count, padding = 40000, 2
    x = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4], x[:, :, 3, 5] = 1, 2
    out = Augment(padding, generator=torch.Generator().manual_seed(0))(x).flatten(1)
    centre, side = (out == 1).int().argmax(1), (out == 2).int().argmax(1)
    flipped = side % 9 < centre % 9
    row, column = centre // 9 - 4 + padding, centre % 9 - 4 + padding
    cells = torch.bincount(row * 10 + column * 2 + flipped.int(), minlength=50).double()
    assert len(cells) == 50
    # Chi-square over the 50 equally likely outcomes: 49 degrees of freedom, 99.9 % point 85.4.
    expected = count / 50
    assert ((cells - expected) ** 2 / expected).sum() < 85.4


def test_augment_can_be_turned_off():
    x = images(50, 3, 8, 8)
    assert torch.equal(Augment(0, flip=False)(x), x)
    rng = torch.Generator().manual_seed(3)
    out = Augment(0, flip=True, generator=rng)(x)
    same, mirrored = (out == x).flatten(1).all(1), (out == x.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all() and 5 < same.sum() < 45
    shifted = Augment(2, flip=False, generator=rng)(torch.arange(1, 9, dtype=torch.uint8).expand(50, 1, 8, 8))
    assert (shifted[:, 0, 4].int().diff()[:, 2:5] == 1).all()
    with pytest.raises(ValueError, match="-1"):
        Augment(-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (3, 32, 32), (1, 1, 28, 28), (0, 3, 8, 8)])
def test_augment_keeps_shape_dtype_and_its_input(shape, dtype):
    x = images(*shape).to(dtype)
    kept = x.clone()
    for augment in (Augment(), Augment(0, flip=False)):
        out = augment(x)
        assert out.shape == x.shape and out.dtype == dtype
        out.zero_()
        assert torch.equal(x, kept)


def test_augment_is_a_function_of_its_generator():
    x = images(20, 3, 8, 8)
    transform = Augment(generator=torch.Generator().manual_seed(5))
    state = transform.generator.get_state()
    global_state = torch.get_rng_state()
    first, second = transform(x), transform(x)
    assert not torch.equal(first, second)
    transform.generator.set_state(state)
    assert torch.equal(transform(x), first) and torch.equal(transform(x), second)
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(1)
    a = Augment()(x)
    torch.manual_seed(1)
    assert torch.equal(Augment()(x), a)


def test_nothing_waits_for_the_device():
    # Tensors on the meta device hold no data: whatever reads one back to the host raises.
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="meta").item()
    x = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device="meta")
    out = TrainTransform(Augment(), Normalize(MEAN, STD))(x)
    assert out.shape == x.shape and out.dtype == torch.float32 and out.device.type == "meta"
    assert Denormalize(MEAN, STD)(out).shape == rotate(x, 30.0).shape == x.shape


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_without_synchronisation():
    rng = torch.Generator("cuda").manual_seed(0)
    transform = TrainTransform(Augment(generator=rng), Normalize(MEAN, STD))
    x = images(16, 3, 32, 32).cuda()
    transform(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = transform(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.is_cuda and out.isfinite().all()


def test_train_transform_augments_raw_pixels_then_normalises():
    x, rng, normalize = images(6, 3, 8, 8), torch.Generator().manual_seed(2), Normalize(MEAN, STD)
    out = TrainTransform(Augment(generator=rng), normalize)(x)
    rng.manual_seed(2)
    # The padding is black, so after normalisation it is -mean / std and not 0.
    assert torch.equal(out, normalize(Augment(generator=rng)(x)))
    assert torch.equal(TrainTransform(None, normalize)(x), normalize(x))


# ---- rotate


def pillow_rotate(x: torch.Tensor, degrees: float) -> torch.Tensor:
    """What torchvision does to PIL images, nearest pixel and zero fill by default."""
    turned = [np.asarray(TF.rotate(Image.fromarray(channel.numpy()), degrees)) for channel in x.flatten(0, 1)]
    return torch.from_numpy(np.stack(turned)).view(x.shape)


@pytest.mark.parametrize("size", [(28, 28), (27, 27), (20, 32)])
def test_rotate_is_pillows_to_the_pixel(size):
    x = images(2, 2, *size)
    kept = x.clone()
    for degrees in [*range(-360, 361, 15), 0.5, 1e-9, 33.3, 59.999999, 89.99, 123.456, -7.25, 725.5]:
        assert torch.equal(rotate(x, degrees), pillow_rotate(x, degrees)), degrees
    rotate(x, 0).zero_()
    assert torch.equal(x, kept)


def test_one_angle_per_image(monkeypatch):
    x = images(11, 3, 9, 9)
    degrees = torch.linspace(-200, 400, 11)
    expected = torch.cat([rotate(x[i : i + 1], float(degrees[i])) for i in range(11)])
    assert torch.equal(rotate(x, degrees), expected)
    # In chunks of two images, the last one smaller.
    monkeypatch.setattr("palimpsest.datasets.utils.transforms.CHUNK_PIXELS", 2 * 3 * 81)
    assert torch.equal(rotate(x, degrees), expected)
    assert torch.equal(rotate(x, 33.0), torch.cat([rotate(one[None], 33.0) for one in x]))
    assert rotate(x[:0], 10.0).shape == (0, 3, 9, 9)
