"""Images at twice and half their size. Everything is linear and can be differentiated any number of times."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from trainkit.errors import ConfigError
from trainkit.ops import library, mode
from trainkit.ops.layout import is_channels_last


def upsample(x: Tensor) -> Tensor:
    """Doubles height and width by nearest neighbour.

    Args:
        x: [B, C, H, W].

    Returns:
        [B, C, 2H, 2W].

    Raises:
        ConfigError: for another number of dimensions.
    """
    _check("upsample", x)
    if is_channels_last(x) and mode.is_on():
        return _doubled(x, 1.0)
    if not mode.is_fused("upsample", x):
        return upsample_reference(x)
    return torch.ops.trainkit.upsample2(x.contiguous(), 1.0)


def upsample_reference(x: Tensor) -> Tensor:
    """`upsample` in plain PyTorch."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Halves height and width by the mean of 2x2 pixels.

    Args:
        x: [B, C, 2H, 2W].

    Returns:
        [B, C, H, W].

    Raises:
        ConfigError: for another number of dimensions, and an odd height or width.

    Example:
        >>> downsample(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[[[2.5000]]]])
    """
    _check("downsample", x)
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ConfigError(f"downsample of {list(x.shape)}: height and width must be even")
    if is_channels_last(x) and mode.is_on():
        return _halved(x, 0.25)
    if not mode.is_fused("downsample", x):
        return downsample_reference(x)
    return torch.ops.trainkit.downsample2(x.contiguous(), 0.25)


def downsample_reference(x: Tensor) -> Tensor:
    """`downsample` in plain PyTorch."""
    return F.avg_pool2d(x, 2)


def upsample_blur(x: Tensor) -> Tensor:
    """Doubles height and width by nearest neighbour, then filters rows and columns with [1, 2, 1] / 4.

    At the border the outermost pixels are repeated, so that a constant image stays constant; StyleGAN pads with zeros,
    which darkens a frame of one pixel. This makes it bilinear interpolation.

    Args:
        x: [B, C, H, W].

    Returns:
        [B, C, 2H, 2W].

    Raises:
        ConfigError: for another number of dimensions.
    """
    _check("upsample_blur", x)
    if not mode.is_fused("upsample_blur", x):
        return upsample_blur_reference(x)
    return torch.ops.trainkit.upsample_blur(x.contiguous())


def upsample_blur_reference(x: Tensor) -> Tensor:
    """`upsample_blur` in plain PyTorch."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def fade_in(below: Tensor, image: Tensor, fade: float) -> Tensor:
    """Blends two resolutions: lerp(upsample(below), image, fade).

    Args:
        below: [B, C, H, W].
        image: [B, C, 2H, 2W].
        fade: 0 gives exactly the upsampled image, 1 exactly `image`.

    Returns:
        [B, C, 2H, 2W], in the wider dtype.

    Raises:
        ConfigError: for shapes that do not match.
    """
    _check("fade_in", below)
    if image.shape != (*below.shape[:2], 2 * below.shape[2], 2 * below.shape[3]):
        raise ConfigError(
            f"fade_in of {list(below.shape)} and {list(image.shape)}: the second must be twice as high and wide"
        )
    dtype = torch.promote_types(below.dtype, image.dtype)
    below, image = below.to(dtype), image.to(dtype)
    if not mode.is_fused("fade_in", image):
        return fade_in_reference(below, image, fade)
    return torch.ops.trainkit.fade_in(below.contiguous(), image.contiguous(), fade)


def fade_in_reference(below: Tensor, image: Tensor, fade: float) -> Tensor:
    """`fade_in` in plain PyTorch."""
    return torch.lerp(upsample_reference(below), image, fade)


def _check(name: str, x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(f"{name} of {x.dtype} {list(x.shape)}: it must be floats [B, C, H, W]")


# -- in channels-last layout: PyTorch's pooling would leave it in its derivative ---------------------------------------


class _Doubled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        x_BHWC = x.permute(0, 2, 3, 1)
        x_BHWC = x_BHWC if scale == 1.0 else x_BHWC * scale
        B, H, W, C = x_BHWC.shape
        y = torch.empty((B, C, 2 * H, 2 * W), dtype=x.dtype, memory_format=torch.channels_last)
        y.permute(0, 2, 3, 1).view(B, H, 2, W, 2, C).copy_(x_BHWC[:, :, None, :, None])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _halved(grads[0], ctx.scale), None


class _Halved(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        y = F.avg_pool2d(x.contiguous(memory_format=torch.channels_last), 2)
        return y if scale == 0.25 else y.mul_(4 * scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _doubled(grads[0], ctx.scale), None


def _doubled(x: Tensor, scale: float) -> Tensor:
    y: Tensor = _Doubled.apply(x, scale)  # type: ignore[no-untyped-call]
    return y


def _halved(x: Tensor, scale: float) -> Tensor:
    y: Tensor = _Halved.apply(x, scale)  # type: ignore[no-untyped-call]
    return y


# -- fakes and derivatives: an op's derivative is its adjoint, whose derivative is the op ------------------------------


def _larger(x: Tensor, *_: float) -> Tensor:
    return x.new_empty((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))


def _smaller(x: Tensor, *_: float) -> Tensor:
    return x.new_empty((*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:]


def _backward_by(adjoint: str) -> Any:
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = getattr(torch.ops.trainkit, adjoint)(g.contiguous(), *ctx.options)
        return (grad_x, *[None] * len(ctx.options))

    return backward


def _save_fade(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.fade = inputs[-1]


def _fade_in_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    below, image = torch.ops.trainkit.fade_in_adjoint(g.contiguous(), ctx.fade)
    return below, image, None


def _fade_in_second(ctx: Any, v_below: Tensor, v_image: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.trainkit.fade_in(v_below.contiguous(), v_image.contiguous(), ctx.fade), None


@library.on_load
def _register() -> None:
    pairs = (("upsample2", "downsample2"), ("upsample_blur", "upsample_blur_adjoint"))
    for larger, smaller in pairs:
        torch.library.register_fake(f"trainkit::{larger}", _larger)
        torch.library.register_fake(f"trainkit::{smaller}", _smaller)
        for op, adjoint in ((larger, smaller), (smaller, larger)):
            torch.library.register_autograd(f"trainkit::{op}", _backward_by(adjoint), setup_context=_save)
    torch.library.register_fake("trainkit::fade_in", lambda below, image, fade: torch.empty_like(image))
    torch.library.register_fake("trainkit::fade_in_adjoint", lambda x, fade: (_smaller(x), torch.empty_like(x)))
    torch.library.register_autograd("trainkit::fade_in", _fade_in_backward, setup_context=_save_fade)
    torch.library.register_autograd("trainkit::fade_in_adjoint", _fade_in_second, setup_context=_save_fade)
