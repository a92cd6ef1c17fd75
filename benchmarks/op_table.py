"""The ops of trainkit.ops as a table: inputs at three sizes, the minimal bytes, and the orders of derivatives."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainkit.ops import mode

KEY, P = 0x1234_5678_9ABC, 0.1
SIZES = ("toy", "check", "cpu", "gpu")

Made = tuple[dict[str, Tensor], dict[str, Any]]
"""What is differentiated, and what else is passed, by the names of the parameters."""

Bytes = tuple[int, int]
"""Read and written by the forward pass, and by the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An op; `function` is its module and name in trainkit.ops, and `<name>_reference` beside it is the same, plainly.

    make: (sizes, dtype) -> inputs on the CPU.  options: what else is passed.  sizes: by one of SIZES.
    listed: those of the inputs that are passed as one list, `tensors`.
    num_bytes: (inputs by name, the result) -> the least that must move; parameters of a few kB do not count.
    orders: how often it is differentiated.
    """

    name: str
    function: str
    make: Callable[..., Made]
    sizes: Mapping[str, tuple[int, ...]]
    num_bytes: Callable[[Mapping[str, Tensor], Tensor], Bytes]
    options: Mapping[str, Any] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    orders: int = 1

    @property
    def absent(self) -> str | None:
        """Why it cannot be measured: this checkout does not have its module."""
        module = f"trainkit.ops.{self.function.partition(':')[0]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            return f"there is no {module}"
        return None

    @property
    def fused(self) -> Callable[..., Any]:
        return self._find("")

    @property
    def reference(self) -> Callable[..., Any]:
        return self._find("_reference")

    def _find(self, suffix: str) -> Callable[..., Any]:
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(f"trainkit.ops.{module}"), name + suffix)
        return function

    def call(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Tensor:
        """The first result of `function` on what `make` made."""
        arguments = {name: value for name, value in inputs.items() if name not in self.listed}
        if self.listed:
            arguments["tensors"] = [inputs[name] for name in self.listed]
        result = function(**arguments, **self.options)
        return result if isinstance(result, Tensor) else result[0]


class Inputs:
    """What an op is given, of one dtype on one device; the same values whatever the two are."""

    def __init__(self, entry: Entry, size: str, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        differentiated, others = entry.make(*entry.sizes[size], dtype=dtype)
        self.differentiated = {k: v.to(device).requires_grad_() for k, v in differentiated.items()}
        self.all: dict[str, Any] = {**self.differentiated, **{k: _on(v, device) for k, v in others.items()}}

    def to(self, dtype: torch.dtype | None = None, device: str | None = None) -> "Inputs":
        """A copy, of another dtype (what is differentiated) or elsewhere."""
        copy: Inputs = object.__new__(Inputs)
        copy.differentiated = {
            name: x.detach().clone().to(device=device, dtype=dtype).requires_grad_()
            for name, x in self.differentiated.items()
        }
        copy.all = {name: _on(value, device) for name, value in self.all.items()} | copy.differentiated
        return copy


def _on(value: Any, device: str | None) -> Any:
    return value.to(device=device) if isinstance(value, Tensor) else value


class EveryOpFused:
    """A context in which ops run compiled even where they are off by default, to measure whether they should be."""

    def __enter__(self) -> None:
        self._off, mode.OFF_BY_DEFAULT = mode.OFF_BY_DEFAULT, {}
        mode.use("fused", require=True)

    def __exit__(self, *_: object) -> None:
        mode.OFF_BY_DEFAULT = self._off
        mode.use("fused")


# -- inputs ------------------------------------------------------------------------------------------------------------


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _hidden(batch: int, length: int, size: int, dtype: torch.dtype) -> Made:
    x = torch.randn(batch, length, size, dtype=torch.float64)
    return {"x": x.to(dtype)}, {"positions": torch.arange(batch)}


def _with_bias(batch: int, length: int, size: int, dtype: torch.dtype) -> Made:
    differentiated, others = _hidden(batch, length, size, dtype)
    return {**differentiated, "bias": torch.randn(size)}, others


def _residual(batch: int, length: int, size: int, dtype: torch.dtype) -> Made:
    differentiated, others = _hidden(batch, length, size, dtype)
    residual = torch.randn(batch, length, size).to(dtype)
    return {**differentiated, "residual": residual, "weight": torch.rand(size) + 0.5, "bias": torch.randn(size)}, others


def _logits(rows: int, classes: int, dtype: torch.dtype) -> Made:
    return {"logits": (3 * torch.randn(rows, classes)).to(dtype)}, {"labels": torch.randint(classes, (rows,))}


def _rows(batch: int, length: int, size: int, dtype: torch.dtype) -> Made:
    attended = torch.arange(length) < torch.randint(length // 4, length + 1, (batch, 1))
    x = torch.randn(batch * length, size).to(dtype)
    return {"x": x}, {"indices": attended.flatten().nonzero()[:, 0]}


def _packed(batch: int, length: int, size: int, dtype: torch.dtype) -> Made:
    differentiated, others = _rows(batch, length, size, dtype)
    packed = differentiated["x"][others["indices"]]
    return {"x": packed}, {**others, "num_rows": batch * length}


def _image(*shape: int, dtype: torch.dtype) -> Made:
    return {"x": torch.randn(shape).to(dtype)}, {}


def _image_with_bias(*shape: int, dtype: torch.dtype) -> Made:
    return {"x": torch.randn(shape).to(dtype), "bias": torch.randn(shape[1])}, {}


def _halves(*shape: int, dtype: torch.dtype) -> Made:
    batch, channels, height, width = shape
    x, y = (torch.randn(batch, part, height, width).to(dtype) for part in (channels // 2, channels - channels // 2))
    return {"x": x, "y": y, "bias": torch.randn(channels)}, {}


def _two_images(*shape: int, dtype: torch.dtype) -> Made:
    batch, channels, height, width = shape
    below = torch.randn(batch, channels, height // 2, width // 2)
    return {"below": below.to(dtype), "image": torch.randn(shape).to(dtype)}, {}


# -- bytes -------------------------------------------------------------------------------------------------------------


def _one_to_one(name: str) -> Callable[[Mapping[str, Tensor], Tensor], Bytes]:
    """Backward reads the gradient and the input `name`, and writes the input's gradient."""

    def of(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
        return _bytes(inputs[name], result), _bytes(result, inputs[name], inputs[name])

    return of


def _linear(*names: str) -> Callable[[Mapping[str, Tensor], Tensor], Bytes]:
    """Backward reads the gradient and writes those of the inputs."""

    def of(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
        moved = _bytes(result, *(inputs[name] for name in names))
        return moved, moved

    return of


def _of_layer_norm(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
    # Forward: x, residual; normed, summed. Backward: gradient, summed; gradients of x and residual.
    return 4 * _bytes(inputs["x"]), 4 * _bytes(inputs["x"])


def _of_cross_entropy(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
    return _bytes(inputs["logits"]), 2 * _bytes(inputs["logits"])


def _of_concat(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
    # Of a leaky ReLU the backward pass needs the signs of what it gave.
    return 2 * _bytes(result), 3 * _bytes(result)


def _of_gather(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
    return 2 * _bytes(result), _bytes(result, inputs["x"])


def _of_scatter(inputs: Mapping[str, Tensor], result: Tensor) -> Bytes:
    return _bytes(result, inputs["x"]), 2 * _bytes(inputs["x"])


# -- the table ---------------------------------------------------------------------------------------------------------

_BERT = {"toy": (2, 5, 15), "check": (4, 16, 768), "cpu": (32, 128, 768), "gpu": (64, 512, 1024)}
_BERT_WIDE = {"toy": (2, 5, 63), "check": (2, 16, 3072), "cpu": (32, 128, 3072), "gpu": (32, 512, 4096)}
_VOCABULARY = {"toy": (6, 101), "check": (33, 30528), "cpu": (640, 30528), "gpu": (4096, 30528)}
_GAN = {"toy": (4, 6, 6, 6), "check": (8, 32, 16, 16), "cpu": (16, 128, 32, 32), "gpu": (16, 64, 256, 256)}
_DROPPED = {"p": P, "key": KEY}

ENTRIES: Sequence[Entry] = (
    Entry(
        name="dropout",
        function="dropout:dropout",
        make=_hidden,
        sizes=_BERT,
        num_bytes=_linear("x"),
        options=_DROPPED,
        orders=2,
    ),
    Entry(
        name="dropout_residual_layer_norm",
        function="layer_norm:dropout_residual_layer_norm",
        make=_residual,
        sizes=_BERT,
        num_bytes=_of_layer_norm,
        options={**_DROPPED, "eps": 1e-12},
        orders=2,
    ),
    Entry(
        name="residual_layer_norm",
        function="layer_norm:dropout_residual_layer_norm",
        make=_residual,
        sizes=_BERT,
        num_bytes=_of_layer_norm,
        options={"eps": 1e-12},
        orders=2,
    ),
    Entry(
        name="bias_activation_dropout",
        function="bias_activation:bias_activation_dropout",
        make=_with_bias,
        sizes=_BERT_WIDE,
        num_bytes=_one_to_one("x"),
        options=_DROPPED,
        orders=2,
    ),
    Entry(
        name="bias_activation",
        function="bias_activation:bias_activation_dropout",
        make=_with_bias,
        sizes=_BERT_WIDE,
        num_bytes=_one_to_one("x"),
        orders=2,
    ),
    Entry(
        name="cross_entropy",
        function="cross_entropy:cross_entropy",
        make=_logits,
        sizes=_VOCABULARY,
        num_bytes=_of_cross_entropy,
    ),
    Entry(name="gather_rows", function="packing:gather_rows", make=_rows, sizes=_BERT, num_bytes=_of_gather, orders=2),
    Entry(
        name="scatter_rows", function="packing:scatter_rows", make=_packed, sizes=_BERT, num_bytes=_of_scatter, orders=2
    ),
    Entry(
        name="bias_leaky_relu_pixel_norm",
        function="pixel_norm:bias_leaky_relu_pixel_norm",
        make=_image_with_bias,
        sizes=_GAN,
        num_bytes=_one_to_one("x"),
        orders=2,
    ),
    Entry(
        name="bias_leaky_relu",
        function="pixel_norm:bias_leaky_relu_pixel_norm",
        make=_image_with_bias,
        sizes=_GAN,
        num_bytes=_one_to_one("x"),
        options={"norm": False},
        orders=2,
    ),
    Entry(name="upsample", function="resample:upsample", make=_image, sizes=_GAN, num_bytes=_linear("x"), orders=2),
    Entry(name="downsample", function="resample:downsample", make=_image, sizes=_GAN, num_bytes=_linear("x"), orders=2),
    Entry(
        name="upsample_blur",
        function="resample:upsample_blur",
        make=_image,
        sizes=_GAN,
        num_bytes=_linear("x"),
        orders=2,
    ),
    Entry(
        name="fade_in",
        function="resample:fade_in",
        make=_two_images,
        sizes=_GAN,
        num_bytes=_linear("below", "image"),
        options={"fade": 0.3},
        orders=2,
    ),
    Entry(
        name="concat",
        function="concat:concat",
        make=_halves,
        sizes=_GAN,
        num_bytes=_of_concat,
        listed=("x", "y"),
        options={"activation": "leaky_relu"},
        orders=2,
    ),
    Entry(
        name="append_minibatch_stddev",
        function="concat:append_minibatch_stddev",
        make=_image,
        sizes=_GAN,
        num_bytes=_one_to_one("x"),
        options={"group": 4},
        orders=2,
    ),
)
