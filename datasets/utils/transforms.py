"""Transforms of whole batches, on the device where the data already is.

Raw images are uint8 (B, C, H, W) or, for one image, (C, H, W). Nothing here reads a tensor back to the host or loops
over samples; `rotate` loops over large chunks to bound its memory.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels that `rotate` handles at once: its index tensors then take some tens of megabytes.
CHUNK_PIXELS = 2**22


def to_float(x: Tensor) -> Tensor:
    """Scales uint8 pixels to float32 in [0, 1], as torchvision's ToTensor does; floats pass through untouched.

    Args:
        x: any shape; uint8 in [0, 255] or floating point.

    Raises:
        TypeError: x has another dtype, whose range is unknown.
    """
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255)
    if x.is_floating_point():
        return x
    raise TypeError(f"images must be uint8 or floating point, got {x.dtype}")


class Normalize:
    """Raw or [0, 1] images to network inputs: `(to_float(x) - mean) / std`, the same bits as torchvision's Normalize.

    Args:
        mean: per channel, of pixels in [0, 1]; None (with std None) leaves only `to_float`.
        std: per channel, positive.

    Raises:
        ValueError: only one of the two is given, their lengths differ, or a std is not positive.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        if len(mean or ()) != len(std or ()):
            raise ValueError(f"mean and std go together, a value of each for every channel: got {mean} and {std}")
        if std is not None and not all(value > 0 for value in std):
            raise ValueError(f"std must be positive in every channel, got {tuple(std)}")
        self.mean, self.std = mean, std
        # Kept once per device, so that no call copies them from the host.
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and std, (C, 1, 1) each, with the device and dtype of x."""
        key = (x.device, x.dtype)
        if key not in self._tensors:
            # An inference tensor could not take part in a later backward pass.
            with torch.inference_mode(False):
                both = torch.tensor([self.mean, self.std], dtype=x.dtype, device=x.device)
                self._tensors[key] = both.view(2, -1, 1, 1).unbind()
        return self._tensors[key]

    def __call__(self, x: Tensor) -> Tensor:
        """Maps x, (B, C, H, W) or (C, H, W), uint8 or float, to a float tensor of the same shape; x is not changed."""
        x = to_float(x)
        if self.mean is None:
            return x
        mean, std = self._on(x)
        return (x - mean).div_(std)


class Denormalize(Normalize):
    """The inverse of `Normalize`: network inputs to pixels in [0, 1] (floats, not clipped). Same arguments."""

    def __call__(self, x: Tensor) -> Tensor:
        """Maps floats (B, C, H, W) or (C, H, W) to floats of the same shape; x is not changed."""
        if self.mean is None:
            return x
        mean, std = self._on(x)
        return (x * std).add_(mean)


@functools.lru_cache(maxsize=32)
def _crop_grid(height: int, width: int, padded_width: int, device: torch.device) -> Tensor:
    """Flat indices into a padded image of the top-left crop (row 0) and of the same crop mirrored (row 1): (2, H*W)."""
    with torch.inference_mode(False):
        rows = torch.arange(height, device=device).view(-1, 1) * padded_width
        columns = torch.arange(width, device=device)
        return torch.stack([(rows + columns).flatten(), (rows + columns.flip(0)).flatten()])


def crop_flip(x: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pads with zeros, cuts one window of the original size per image, mirrors some: one gather for the whole batch.

    Args:
        x: (B, C, H, W), any dtype.
        top: (B,) integers in [0, 2 * padding], first row of the window in the padded image (padding = no shift).
        left: (B,) likewise, first column.
        flip: (B,) bool or 0/1, whether the window is mirrored left to right after the cut.
        padding: zeros added on each side, >= 0.

    Returns:
        A new tensor with the shape and dtype of x.
    """
    batch, channels, height, width = x.shape
    padded_width = width + 2 * padding
    padded = F.pad(x, (padding,) * 4) if padding else x
    corner = top * padded_width + left
    index = _crop_grid(height, width, padded_width, x.device)[flip.long()] + corner.unsqueeze(1)
    return padded.flatten(2).gather(2, index.unsqueeze(1).expand(-1, channels, -1)).view(x.shape)


class Augment:
    """Random crop with zero padding and random horizontal flip, drawn anew for every image of a batch.

    On raw pixels this is torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip()` before `ToTensor`: the
    padding is black, not the mean colour.

    Args:
        crop_padding: pixels added on each side before the crop; 0 = no crop. Default 4.
        flip: mirror each image with probability one half. Default True.
        generator: source of the random numbers, best on the data's device; None = that device's global generator. Its
            state is all that this transform remembers.

    Raises:
        ValueError: crop_padding is negative.
    """

    def __init__(self, crop_padding: int = 4, flip: bool = True, generator: torch.Generator | None = None):
        if crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0, got {crop_padding}")
        self.crop_padding, self.flip, self.generator = crop_padding, flip, generator

    def __call__(self, x: Tensor) -> Tensor:
        """Maps x, (B, C, H, W) or (C, H, W), to a new tensor of the same shape and dtype."""
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        source = x.device if self.generator is None else self.generator.device

        def draw(below: int, *shape: int) -> Tensor:
            return torch.randint(below, shape, generator=self.generator, device=source).to(x.device, non_blocking=True)

        top, left = draw(2 * self.crop_padding + 1, 2, len(x))
        flip = draw(2, len(x)) if self.flip else torch.zeros_like(top)
        return crop_flip(x, top, left, flip, self.crop_padding)


class TrainTransform:
    """Raw images to network inputs for training: `normalize(augment(x))`.

    Args:
        augment: an `Augment`, any callable on raw batches, or None for no augmentation.
        normalize: a `Normalize`, or any callable from raw batches to network inputs.
    """

    def __init__(self, augment: Augment | None, normalize: Normalize):
        self.augment, self.normalize = augment, normalize

    def __call__(self, x: Tensor) -> Tensor:
        """Maps x, (B, C, H, W) or (C, H, W), to a float tensor of the same shape."""
        return self.normalize(x if self.augment is None else self.augment(x))


def rotate(x: Tensor, degrees: float | Tensor) -> Tensor:
    """Rotates images counter-clockwise about their centre: nearest pixel, zeros where nothing maps.

    Follows Pillow's `Image.rotate(angle, NEAREST)`, on which the published rotated-MNIST streams rest, down to its
    16.16 fixed-point coordinates: the pixels are Pillow's, not merely close to them.

    Args:
        x: (N, C, H, W), any dtype, sides below 32768.
        degrees: one angle for all images, or a tensor (N,) of one per image; any real number.

    Returns:
        A new tensor with the shape and dtype of x.
    """
    count, channels, height, width = x.shape
    angles = torch.as_tensor(degrees, dtype=torch.float64).reshape(-1, 1)
    radians = (angles % 360) * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()

    def fixed_point(value: Tensor) -> Tensor:
        return torch.floor(value * 65536 + 0.5).long().to(x.device)

    # The source of target pixel (column, row), whose centre is half a pixel further, is
    # (cos, -sin; sin, cos) (target - centre) + centre. Each coefficient is rounded once, the rest is exact.
    x_start = fixed_point(width / 2 + cos * (0.5 - width / 2) - sin * (0.5 - height / 2))
    y_start = fixed_point(height / 2 + sin * (0.5 - width / 2) + cos * (0.5 - height / 2))
    cos, sin = fixed_point(cos), fixed_point(sin)
    columns = torch.arange(width, device=x.device).repeat(height)
    rows = torch.arange(height, device=x.device).repeat_interleave(width)

    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    step = max(1, CHUNK_PIXELS // (channels * height * width))
    for first in range(0, count, step):
        chunk = slice(first, first + step)
        own = chunk if len(angles) > 1 else slice(None)
        source_x = (x_start[own] + cos[own] * columns - sin[own] * rows) >> 16
        source_y = (y_start[own] + sin[own] * columns + cos[own] * rows) >> 16
        outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
        index = (source_y * width + source_x).masked_fill_(outside, 0)
        pixels = x[chunk].flatten(2)
        pixels = pixels.gather(2, index.unsqueeze(1).expand_as(pixels))
        result[chunk] = pixels.masked_fill_(outside.unsqueeze(1), 0).view(-1, channels, height, width)
    return result
