"""The networks of Karras et al., "Progressive growing of GANs" (ICLR 2018, arXiv 1710.10196), table 2 and appendix A.

Shape suffixes: B samples, C channels, H height, W width, Z latent.
A network is made for one resolution, and for a fade also with the layers of the resolution below. The names of its
parameters contain the resolution they belong to, so they stay the same while it grows.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError, UsageError, require_at_least
from trainkit.ops import (
    append_minibatch_stddev,
    bias_leaky_relu_pixel_norm,
    convolution,
    convolves_fast,
    downsample,
    fade_in,
    mode,
    pixel_norm,
    widened,
)
from trainkit.precision import in_full_precision

SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of the networks: the block at resolution 2^r has min(fmap_base / 2^(r-1), fmap_max) channels.

    Args:
        latent_dim: elements of a latent.
        fmap_base: see above.
        fmap_max: the most channels.
        channels: of an image.
        stddev_group: samples that share a minibatch standard deviation.
        num_classes: of class-conditional networks; 0: the networks take no labels.

    Raises:
        ConfigError: for values below 1, or a negative number of classes.
    """

    latent_dim: int = 512
    fmap_base: int = 8192
    fmap_max: int = 512
    channels: int = 3
    stddev_group: int = 4
    num_classes: int = 0

    def __post_init__(self) -> None:
        sizes = asdict(self)
        require_at_least(0, "recipe.", num_classes=sizes.pop("num_classes"))
        require_at_least(1, "recipe.", **sizes)

    @property
    def input_dim(self) -> int:
        """Elements of the generator's input: the latent, and as many of a class where there are classes."""
        return self.latent_dim * (2 if self.num_classes else 1)

    def at(self, resolution: int) -> int:
        """Returns the channels of the block at a resolution."""
        return min(self.fmap_base * 2 // resolution, self.fmap_max)

    def num_products(self, resolution: int) -> int:
        """Returns the multiplications per image in the forward pass of both networks, without those of 1x1 layers."""
        lowest = self.at(4)
        total = 16 * lowest * (self.input_dim + 9 * lowest + 9 * (lowest + 1) + lowest)
        for size in _sizes(resolution)[1:]:
            total += 2 * 9 * size**2 * self.at(size) * (self.at(size) + self.at(size // 2))
        return total


@dataclass(frozen=True, kw_only=True)
class LowPrecision:
    """The part of the networks that computes in bf16 or fp16 when the run does, as in StyleGAN2-ADA (arXiv 2006.06676).

    Low resolutions need fp32's range and take little time; the highest ones take most of it. There, activations are
    clamped, so that a large one saturates instead of becoming infinite. Images are summed in fp32. No effect in fp32,
    tf32 and fp64.

    Args:
        lowest: the lowest resolution with blocks in low precision; 4x4, with the layers of latents and scores, never
            is.
        clamp: the largest magnitude of an activation there.
    """

    lowest: int = 8
    clamp: float = 256.0

    @classmethod
    def highest(cls, num_resolutions: int, final_resolution: int, clamp: float) -> "LowPrecision":
        """Makes the setting for the highest resolutions of a network that grows, from the start of its growth.

        Args:
            num_resolutions: how many.
            final_resolution: of the grown network.
            clamp: the largest magnitude of an activation.

        Raises:
            ConfigError: for values out of range.
        """
        if num_resolutions < 0 or not clamp > 0:
            raise ConfigError(
                f"recipe.low_precision_resolutions={num_resolutions}, recipe.clamp={clamp}: they must be 0 or more "
                f"resolutions, and a clamp above 0"
            )
        return cls(lowest=final_resolution * 2 >> num_resolutions, clamp=clamp)

    def run(self, resolution: int, layer: nn.Module, *x: Tensor) -> Tensor:
        """Computes `layer(*x)`, in fp32 where its resolution requires that."""
        return layer(*x) if resolution >= max(8, self.lowest) else in_full_precision(layer, *x)

    def activation(self, norm: bool = False) -> "Activation":
        """Returns the activation of a block, with the pixel norm or without."""
        return Activation(norm=norm, clamp=self.clamp)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """Leaky ReLU of slope 0.2, in bf16 and fp16 clamped; optionally followed by the pixel norm.

    Args:
        norm: whether the pixel norm follows.
        clamp: the largest magnitude in bf16 and fp16; None: not limited.
    """

    norm: bool = False
    clamp: float | None = None

    def is_fused(self, x: Tensor) -> bool:
        """Whether its op runs compiled on `x`."""
        return mode.is_fused("pixel_norm" if self.norm else "bias_leaky_relu", x)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Applies it to `x` [B, C, ...] plus `bias` [C]."""
        clamp = self.clamp if x.dtype.itemsize < 4 else None
        return bias_leaky_relu_pixel_norm(x, bias, slope=SLOPE, clamp=clamp, norm=self.norm)


class _Equalized(nn.Module):
    """Weights of N(0, 1), scaled by gain / sqrt(fan_in) in use: all layers learn equally fast (section 4.1)."""

    def __init__(self, shape: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.scale = gain / math.sqrt(math.prod(shape[1:]))


class EqualizedConv2d(_Equalized):
    """A convolution that keeps the size of its input, optionally followed by an activation.

    Args:
        num_in: input channels.
        num_out: output channels.
        kernel_size: of both sides, odd.
        gain: of the weights' scale.
        activation: None: linear.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel_size: int,
        gain: float = math.sqrt(2.0),
        activation: Activation | None = None,
    ) -> None:
        super().__init__((num_out, num_in, kernel_size, kernel_size), gain)
        self.activation = activation

    def forward(self, x_BCHW: Tensor, doubled: bool = False) -> Tensor:
        """Maps [B, num_in, H, W] to [B, num_out, H, W]; `doubled`: the input is upsampled first, and so the output."""
        weight, activation = self.weight * self.scale, self.activation
        if activation is not None and not activation.norm and convolves_fast(x_BCHW, weight, doubled=doubled):
            return convolution(x_BCHW, weight, self.bias, slope=SLOPE, doubled=doubled)
        # The fused activation adds the bias at no cost; on CUDA the convolution needs another pass for it.
        adds_bias = activation is not None and activation.is_fused(x_BCHW)
        y_BCHW = convolution(x_BCHW, weight, None if adds_bias else self.bias, doubled=doubled)
        if activation is None:
            return y_BCHW
        return activation(y_BCHW, self.bias if adds_bias else None)


class EqualizedLinear(_Equalized):
    """A linear layer with equalized weights.

    Args:
        num_in: size of the input's last dimension.
        num_out: size of the output's last dimension.
        gain: of the weights' scale.
    """

    def __init__(self, num_in: int, num_out: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__((num_out, num_in), gain)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., num_in] to [..., num_out]."""
        return F.linear(x, self.weight * self.scale, self.bias)


class EqualizedSpread(nn.Module):
    """Maps a latent to a 4x4 map by a linear layer with one bias per channel, followed by an activation.

    Args:
        latent_dim: elements of a latent.
        num_out: output channels.
        activation: of the map.
    """

    def __init__(self, latent_dim: int, num_out: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(num_out * 16, latent_dim))
        self.bias = nn.Parameter(torch.zeros(num_out))
        self.scale = math.sqrt(2.0) / 4.0 / math.sqrt(latent_dim)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Maps [B, Z] to [B, num_out, 4, 4]."""
        return self.activation(F.linear(z_BZ, self.weight * self.scale).unflatten(1, (-1, 4, 4)), self.bias)


class ClassEmbedding(nn.Module):
    """A vector for each class, drawn from N(0, 1).

    Args:
        num_classes: how many.
        num_out: elements of a vector.
    """

    def __init__(self, num_classes: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_out))

    def forward(self, labels_B: Tensor | None) -> Tensor:
        """Maps labels [B] to vectors [B, num_out]. Raises UsageError where there are none."""
        if labels_B is None:
            raise UsageError("this network is class-conditional: call it with labels=int64 [B]")
        return F.embedding(labels_B, self.weight)


def _embedding(widths: Widths, num_out: int) -> ClassEmbedding | None:
    return ClassEmbedding(widths.num_classes, num_out) if widths.num_classes else None


def _mixed(old: Tensor, new: Tensor, fade: float) -> Tensor:
    """Computes lerp(old, new, fade) in the wider of their dtypes."""
    dtype = torch.promote_types(old.dtype, new.dtype)
    return torch.lerp(old.to(dtype), new.to(dtype), fade)


class _FirstBlock(nn.Module):
    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.spread = EqualizedSpread(widths.input_dim, widths.at(4), Activation(norm=True))
        self.conv = EqualizedConv2d(widths.at(4), widths.at(4), 3, activation=Activation(norm=True))

    def forward(self, z_BZ: Tensor) -> Tensor:
        return self.conv(self.spread(z_BZ))


class _GeneratorBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, low: LowPrecision) -> None:
        super().__init__()
        activation = low.activation(norm=True)
        self.conv1 = EqualizedConv2d(num_in, num_out, 3, activation=activation)
        self.conv2 = EqualizedConv2d(num_out, num_out, 3, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv2(self.conv1(x_BCHW, doubled=True))


class _DiscriminatorBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, low: LowPrecision) -> None:
        super().__init__()
        self.conv1 = EqualizedConv2d(num_in, num_in, 3, activation=low.activation())
        self.conv2 = EqualizedConv2d(num_in, num_out, 3, activation=low.activation())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return downsample(self.conv2(self.conv1(x_BCHW)))


class _LastBlock(nn.Module):
    def __init__(self, widths: Widths) -> None:
        super().__init__()
        num = widths.at(4)
        self.group = widths.stddev_group
        self.conv = EqualizedConv2d(num + 1, num, 3, activation=Activation())
        self.dense = EqualizedLinear(num * 16, num)
        self.out = EqualizedLinear(num, 1, gain=1.0)
        self.classes = _embedding(widths, num)

    def forward(self, x_BCHW: Tensor, labels_B: Tensor | None = None) -> Tensor:
        x_BCHW = self.conv(append_minibatch_stddev(x_BCHW, self.group))
        features_BC = Activation()(self.dense(x_BCHW.flatten(1)))
        score_B = self.out(features_BC).squeeze(1)
        if self.classes is None:
            return score_B
        # The gain of an equalized linear layer: the embedding is its weights.
        return score_B + (self.classes(labels_B) * features_BC).sum(dim=1) / math.sqrt(features_BC.shape[1])


def _sizes(resolution: int) -> list[int]:
    return [4 << i for i in range(int(math.log2(resolution)) - 1)]


class Generator(nn.Module):
    """Maps latents [B, Z] to images [B, C, resolution, resolution] of about -1 .. 1 (linear, not clamped).

    While fading, the image is lerp(upsampled image of the resolution below, own image, fade). With classes, the input
    is the normalized latent beside the normalized vector of the class, as in StyleGAN2-ADA (arXiv 2006.06676).

    Args:
        widths: sizes of the layers.
        resolution: pixels of a side.
        is_fading: whether it includes the output of the resolution below.
        low: the part in low precision.
    """

    def __init__(
        self, widths: Widths, resolution: int, is_fading: bool = False, low: LowPrecision | None = None
    ) -> None:
        super().__init__()
        self.low = low or LowPrecision()
        self.resolution, self.is_fading = resolution, is_fading and resolution > 4
        self.classes = _embedding(widths, widths.latent_dim)
        self.blocks = nn.ModuleDict({"4": _FirstBlock(widths)})
        for size in _sizes(resolution)[1:]:
            self.blocks[str(size)] = _GeneratorBlock(widths.at(size // 2), widths.at(size), self.low)
        image_sizes = [resolution // 2, resolution] if self.is_fading else [resolution]
        self.to_image = nn.ModuleDict(
            {str(size): EqualizedConv2d(widths.at(size), widths.channels, 1, gain=1.0) for size in image_sizes}
        )

    def forward(self, z_BZ: Tensor, fade: float = 1.0, labels: Tensor | None = None) -> Tensor:
        """Maps latents [B, Z] to images.

        Args:
            z_BZ: latents, normalized here.
            fade: weight of the new layers.
            labels: int64 [B], the classes; not used without classes.
        """
        x_BCHW = self._input(z_BZ, labels)
        below_BCHW = x_BCHW
        for size, block in self.blocks.items():
            below_BCHW, x_BCHW = x_BCHW, self.low.run(int(size), block, x_BCHW)
        image_BCHW = self._image(self.resolution, x_BCHW)
        if not self.is_fading:
            return image_BCHW
        return fade_in(self._image(self.resolution // 2, below_BCHW), image_BCHW, fade)

    def _input(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        normalized = pixel_norm(z_BZ)
        return normalized if self.classes is None else torch.cat([normalized, pixel_norm(self.classes(labels_B))], 1)

    def _image(self, size: int, x_BCHW: Tensor) -> Tensor:
        return widened(self.low.run(size, self.to_image[str(size)], x_BCHW))


class Discriminator(nn.Module):
    """Maps images [B, C, resolution, resolution] to scores [B]; real images should get high ones.

    With classes, the product of the last features and a vector of the class is added to the score (the projection of
    Miyato and Koyama, arXiv 1802.05637).

    Args:
        widths: sizes of the layers.
        resolution: pixels of a side.
        is_fading: whether it includes the input of the resolution below.
        low: the part in low precision.
    """

    def __init__(
        self, widths: Widths, resolution: int, is_fading: bool = False, low: LowPrecision | None = None
    ) -> None:
        super().__init__()
        self.low = low or LowPrecision()
        self.resolution, self.is_fading = resolution, is_fading and resolution > 4
        image_sizes = [resolution, resolution // 2] if self.is_fading else [resolution]
        self.from_image = nn.ModuleDict(
            {
                str(size): EqualizedConv2d(widths.channels, widths.at(size), 1, activation=self.low.activation())
                for size in image_sizes
            }
        )
        self.blocks = nn.ModuleDict(
            {
                str(size): _DiscriminatorBlock(widths.at(size), widths.at(size // 2), self.low)
                for size in reversed(_sizes(resolution)[1:])
            }
        )
        self.blocks["4"] = _LastBlock(widths)

    def forward(self, image_BCHW: Tensor, fade: float = 1.0, labels: Tensor | None = None) -> Tensor:
        """Maps images to scores [B].

        Args:
            image_BCHW: of -1 .. 1.
            fade: weight of the new layers.
            labels: int64 [B], the classes; not used without classes.
        """
        x_BCHW = self._features(self.resolution, image_BCHW)
        for size, block in self.blocks.items():
            given = (x_BCHW, labels) if size == "4" and labels is not None else (x_BCHW,)
            x_BCHW = self.low.run(int(size), block, *given)
            if self.is_fading and int(size) == self.resolution:
                x_BCHW = _mixed(self._features(self.resolution // 2, downsample(image_BCHW)), x_BCHW, fade)
        return x_BCHW

    def _features(self, size: int, image_BCHW: Tensor) -> Tensor:
        return self.low.run(size, self.from_image[str(size)], image_BCHW)
