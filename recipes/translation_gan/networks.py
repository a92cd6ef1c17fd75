"""The networks of Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks" (2017).

arXiv 1703.10593, section 7.2. Shape suffixes: B samples, C channels, H height, W width.

Convolutions before an instance norm have no bias: the norm would remove it, its gradient is exactly zero, and an
optimizer such as Adam would make steps of its rounding errors, which differ between numbers of processes.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError, require_at_least
from trainkit.ops import widened
from trainkit_recipes.translation_gan.pool import Pool

_INIT_STD = 0.02
_SMALLEST = 8
_WHOLE_SIZE = 256  # pixels: the paper's networks are for this size


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the networks.

    Args:
        resolution: pixels of a side in training; a multiple of 4.
        channels: of an image.
        generator_channels: of the first layer of a generator; twice and four times as many follow.
        discriminator_channels: of the first layer of a discriminator.
        num_blocks: residual blocks of a generator; None: 9 from 256 pixels on, 6 below, as in the paper.
        discriminator_layers: convolutions of a discriminator with stride 2: patches of 16, 34, 70 and 142 pixels with
            1 to 4; None: 3 at 256 pixels, as in the paper, and one less for each halving, so that a patch keeps its
            share of the image.

    Raises:
        ConfigError: for values out of range.
    """

    resolution: int = 256
    channels: int = 3
    generator_channels: int = 64
    discriminator_channels: int = 64
    num_blocks: int | None = None
    discriminator_layers: int | None = None

    def __post_init__(self) -> None:
        require_at_least(
            1, "recipe.networks.", **{key: value for key, value in asdict(self).items() if value is not None}
        )
        if self.resolution < _SMALLEST or self.resolution % 4:
            raise ConfigError(
                f"recipe.networks.resolution={self.resolution}: must be a multiple of 4, from {_SMALLEST} on"
            )
        if self.resolution >> self.strides < 4:
            raise ConfigError(
                f"recipe.networks.discriminator_layers={self.discriminator_layers}: must be at most "
                f"{(self.resolution // 4).bit_length() - 1} at recipe.networks.resolution={self.resolution}, or null"
            )

    @property
    def blocks(self) -> int:
        """Residual blocks of a generator."""
        return self.num_blocks or (9 if self.resolution >= _WHOLE_SIZE else 6)

    @property
    def strides(self) -> int:
        """Convolutions of a discriminator with stride 2."""
        # A patch of 70 pixels in 256; of 16, the smallest, where it would be less.
        scaled = (self.resolution // 32).bit_length() - 1
        return self.discriminator_layers or max(1, min(4, scaled))

    @property
    def patch(self) -> int:
        """Pixels of a side of what one score of a discriminator depends on."""
        size = 1 + 3 + 3  # two convolutions of 4x4 and stride 1
        for _ in range(self.strides):
            size = (size - 1) * 2 + 4
        return size


def reflect(x_BCHW: Tensor, size: int) -> Tensor:
    """Pads by `size` mirrored pixels at each border. Unlike that of F.pad on CUDA, its gradient is deterministic."""
    x_BCHW = torch.cat((x_BCHW[:, :, 1 : size + 1].flip(2), x_BCHW, x_BCHW[:, :, -size - 1 : -1].flip(2)), 2)
    return torch.cat((x_BCHW[..., 1 : size + 1].flip(3), x_BCHW, x_BCHW[..., -size - 1 : -1].flip(3)), 3)


class _Reflected(nn.Conv2d):
    """A convolution that keeps the size of its input, at whose borders it is mirrored."""

    def __init__(self, num_in: int, num_out: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__(num_in, num_out, kernel_size, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(reflect(x_BCHW, self.kernel_size[0] // 2))


class InstanceNorm(nn.Module):
    """Subtracts the mean of each channel of each image, and divides by its standard deviation; nothing is learnt."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalizes [B, C, H, W] over H and W."""
        # Unlike instance_norm it takes an empty batch, and an exported file any number of images.
        return F.group_norm(x_BCHW, x_BCHW.shape[1])


class _Residual(nn.Module):
    def __init__(self, num: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Reflected(num, num, 3), InstanceNorm(), nn.ReLU(), _Reflected(num, num, 3), InstanceNorm()
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        changed: Tensor = self.layers(x_BCHW)
        return x_BCHW + changed


def _initialized(module: nn.Module) -> None:
    """Draws weights from N(0, 0.02), as in the paper; biases are zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=_INIT_STD)
        else:
            nn.init.zeros_(parameter)


class Generator(nn.Module):
    """Translates images: two convolutions with stride 2, residual blocks, and two transposed convolutions.

    Fully convolutional: the height and the width may be any multiples of 4, from 8 on.

    Args:
        shape: of the networks.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        num, channels = shape.generator_channels, shape.channels
        down = [
            layer
            for wide in (num, 2 * num)
            for layer in (nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1, bias=False), InstanceNorm(), nn.ReLU())
        ]
        up = [
            layer
            for wide in (4 * num, 2 * num)
            for layer in (
                nn.ConvTranspose2d(wide, wide // 2, 3, stride=2, padding=1, output_padding=1, bias=False),
                InstanceNorm(),
                nn.ReLU(),
            )
        ]
        self.layers = nn.Sequential(
            _Reflected(channels, num, 7),
            InstanceNorm(),
            nn.ReLU(),
            *down,
            *(_Residual(4 * num) for _ in range(shape.blocks)),
            *up,
            _Reflected(num, channels, 7, bias=True),
        )
        _initialized(self)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Maps images of -1 .. 1 to images of -1 .. 1 of the same size."""
        return torch.tanh(widened(self.layers(image_BCHW)))


class Discriminator(nn.Module):
    """Scores overlapping patches of an image (PatchGAN); real ones should get 1, generated ones 0.

    It also holds the pool of generated images that it is trained on, so that a checkpoint does.

    Args:
        shape: of the networks.
        pool_size: images in the pool.
    """

    def __init__(self, shape: Shape, pool_size: int) -> None:
        super().__init__()
        wide = shape.discriminator_channels
        layers: list[nn.Module] = [nn.Conv2d(shape.channels, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number in range(shape.strides):
            num = shape.discriminator_channels * min(2 ** (number + 1), 8)
            stride = 1 if number == shape.strides - 1 else 2
            layers += [
                nn.Conv2d(wide, num, 4, stride=stride, padding=1, bias=False),
                InstanceNorm(),
                nn.LeakyReLU(0.2),
            ]
            wide = num
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, 1, 4, padding=1))
        self.pool = Pool(pool_size, shape.channels, shape.resolution)
        _initialized(self)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Maps images [B, C, H, W] of -1 .. 1 to scores [B, 1, h, w]."""
        return widened(self.layers(image_BCHW))
