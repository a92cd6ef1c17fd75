"""Operations and layers, each with a reference in plain PyTorch."""

from trainkit.ops import mode
from trainkit.ops.activation import Activation, activation
from trainkit.ops.bias_activation import ActivatedLinear, bias_activation_dropout
from trainkit.ops.concat import append_minibatch_stddev, concat
from trainkit.ops.cross_entropy import cross_entropy
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.dtypes import widened
from trainkit.ops.extension import load_extension
from trainkit.ops.layer_norm import LayerNorm, dropout_residual_layer_norm
from trainkit.ops.masked_linear import MaskedLinear
from trainkit.ops.packing import pad, unpad
from trainkit.ops.pixel_norm import bias_leaky_relu_pixel_norm, pixel_norm
from trainkit.ops.resample import downsample, fade_in, upsample, upsample_blur
from trainkit.ops.switch import Ops
from trainkit.ops.winograd import convolution, convolves_fast

__all__ = [
    "ActivatedLinear",
    "Activation",
    "Dropout",
    "LayerNorm",
    "MaskedLinear",
    "Ops",
    "activation",
    "append_minibatch_stddev",
    "bias_activation_dropout",
    "bias_leaky_relu_pixel_norm",
    "concat",
    "convolution",
    "convolves_fast",
    "cross_entropy",
    "downsample",
    "dropout",
    "dropout_residual_layer_norm",
    "fade_in",
    "load_extension",
    "mode",
    "pad",
    "pixel_norm",
    "unpad",
    "upsample",
    "upsample_blur",
    "widened",
]


def __dir__() -> list[str]:
    return sorted(__all__)
