"""LAMB: Adam's direction, with a length proportional to each parameter's norm (You et al., arXiv 1904.00962)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.errors import ConfigError
from trainkit.ops.bits import unpack_bits
from trainkit.ops.mode import is_fused
from trainkit.ops.optimizer import LambTensors, lamb_apply_, lamb_moments_
from trainkit.optim.sharded import ShardedOptimizer, at

_CHUNK = 2**16  # elements: on a CPU, the operands of one step of the formula stay in the cache


class Lamb(ShardedOptimizer):
    """Algorithm 2 of the paper with phi(x) = x, as used to train BERT-large.

    For a parameter w, at step t:

        g = gradient * min(1, max_grad_norm / norm of all gradients)
        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w
        w = w - lr * ratio * u,   ratio = |w| / |u|

    The norms are those of whole parameters, also where these are sharded. ratio is 1 in groups without weight decay,
    and where either norm is 0. A masked weight (`set_masks`) counts in neither norm, and stays 0. State: `step`,
    `exp_avg`, `exp_avg_sq`.

    Args:
        params: parameters or parameter groups, which may have their own lr, betas, eps, weight_decay and
            bias_correction.
        lr: learning rate.
        betas: decay of the first and second moments, b1 and b2.
        eps: added to the root of the second moment.
        weight_decay: factor of w in u.
        max_grad_norm: largest norm of all gradients together; None: no clipping. An Engine clips in its place: once, to
            the smaller of its own `max_grad_norm` and this one, with the factor max_grad_norm / (norm + 1e-6).
        bias_correction: False omits both divisions by 1 - b^t.

    Raises:
        ConfigError: for values out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        bias_correction: bool = True,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(
                f"optimizer.max_grad_norm={max_grad_norm}: must be a norm above 0, or null for no clipping"
            )
        self.max_grad_norm = max_grad_norm
        own = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**own, "bias_correction": bias_correction})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group. Raises ConfigError for values out of range."""
        given = {**self.defaults, **param_group}
        for key in ("lr", "eps", "weight_decay"):
            if not given[key] >= 0:
                raise ConfigError(f"optimizer.{key}={given[key]}: must be 0 or more")
        if len(given["betas"]) != 2 or not all(0 <= beta < 1 for beta in given["betas"]):
            raise ConfigError(f"optimizer.betas={given['betas']}: must be two numbers, 0 <= beta < 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient. Collective over the group of `set_ranges`: every rank must call.

        Args:
            closure: computes the loss again, and returns it.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ranges = [one for group in self.param_groups for one in self._ranges_of(group)]
        if not ranges:
            return loss
        compiled = self._compiled(ranges)
        factor = self._clip_factor([one.gradient for one in ranges])
        if compiled is not None:
            squares = lamb_moments_(compiled, [one.gradient for one in ranges], factor)
            lamb_apply_(compiled, self._summed(squares, ranges))
        else:
            for chunks in _batches(ranges):
                _make_updates(chunks, factor)
            squares = torch.stack([_sum_of_squares(norms, one.weight.device) for one in ranges for norms in one.norms])
            for one, ratio in zip(ranges, _ratios(self._summed(squares.view(-1, 2), ranges)), strict=True):
                one.weight.addcmul_(one.update, ratio.to(one.weight), value=-one.group["lr"])
            self._copy(self._stepped())
        return loss

    # -- inside ------------------------------------------------------------------------------------------------------

    def _ranges_of(self, group: dict[str, Any]) -> list["_Range"]:
        ranges = []
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] += 1
            tensors = (p.detach(), p.grad, state["exp_avg"], state["exp_avg_sq"])
            views = zip(*(self._views(tensor, p) for tensor in tensors), strict=True)
            for i, held in enumerate(views):
                ranges.append(_Range(group, int(state["step"]), held, at(self._bits, p, i), at(self._copies, p, i)))
        return ranges

    def _clip_factor(self, gradients: Sequence[Tensor]) -> Tensor | None:
        # The caller of set_ranges clips: this rank may not have all gradients.
        if self.max_grad_norm is None or self._ranges is not None or not gradients:
            return None
        norm = _sum_of_squares(torch._foreach_norm(list(gradients)), gradients[0].device).sqrt()
        return (self.max_grad_norm / norm).clamp(max=1.0).to(gradients[0].dtype)

    def _summed(self, squares: Tensor, ranges: Sequence["_Range"]) -> Tensor:
        """Returns the squared norms of whole parameters, [number of ranges, 2], for this rank's ranges."""
        if self._group is None or not any(one.group["weight_decay"] for one in ranges):
            return squares
        summed = squares.to(self._sum_device)
        dist.all_reduce(summed, group=self._group)
        return summed.to(squares.device)

    def _compiled(self, ranges: Sequence["_Range"]) -> LambTensors | None:
        """Returns the ranges as the compiled kernels take them; None where they are not supported."""
        first = ranges[0].weight
        if not all(one.fits_kernels(first.device) for one in ranges) or not is_fused("lamb", first):
            return None
        nothing = first.new_empty(0, dtype=torch.uint8)
        return LambTensors(
            [one.weight for one in ranges],
            [one.m for one in ranges],
            [one.v for one in ranges],
            [nothing if one.bits is None else one.bits for one in ranges],
            [nothing if one.copy is None else one.copy for one in ranges],
            torch.tensor([one.hyper() for one in ranges], dtype=torch.float64),
        )


class _Range:
    """A range of a parameter with its gradient and state in one step. A chunk of it is one, too."""

    def __init__(
        self,
        group: dict[str, Any],
        step: int,
        tensors: Sequence[Tensor],
        bits: Tensor | None,
        copy: Tensor | None = None,
    ) -> None:
        self.group, self.step, self.bits, self.copy = group, step, bits, copy
        self.weight, self.gradient, self.m, self.v = tensors
        self.norms: tuple[list[Tensor], list[Tensor]] = ([], [])
        """Norms of the weights and of their update, by chunks."""

    def corrections(self) -> tuple[float, float]:
        """Returns (scale, offset) such that m / (scale sqrt(v) + offset) includes the divisions by 1 - b^t."""
        (b1, b2), eps = self.group["betas"], self.group["eps"]
        if not self.group["bias_correction"]:
            return 1.0, eps
        c1 = 1.0 - b1**self.step
        return c1 / math.sqrt(1.0 - b2**self.step), c1 * eps

    def hyper(self) -> tuple[float, ...]:
        """Returns a row of `LambTensors.hyper`."""
        b1, b2 = self.group["betas"]
        return 1.0 - b1, b1, 1.0 - b2, b2, *self.corrections(), self.group["weight_decay"], self.group["lr"]

    def fits_kernels(self, device: torch.device) -> bool:
        """Whether the compiled kernels support it."""
        tensors = (self.weight, self.gradient, self.m, self.v)
        return all(t.dtype == torch.float32 and t.device == device and t.is_contiguous() for t in tensors) and (
            self.copy is None or self.copy.dtype == torch.bfloat16
        )

    @cached_property
    def update(self) -> Tensor:
        """The update u, which `_make_updates` computes."""
        return torch.empty_like(self.weight)

    def chunks(self) -> Iterator["_Range"]:
        """Yields chunks of at most `_CHUNK` elements, which share its norms."""
        tensors = (self.weight, self.gradient, self.m, self.v, self.update)
        if self.weight.numel() <= _CHUNK or not all(tensor.is_contiguous() for tensor in tensors):
            yield self
            return
        split = [tensor.view(-1).split(_CHUNK) for tensor in tensors]
        masks = self.bits.split(_CHUNK // 8) if self.bits is not None else [None] * len(split[0])
        for *held, update, bits in zip(*split, masks, strict=True):
            chunk = _Range(self.group, self.step, held, bits)
            chunk.norms, chunk.update = self.norms, update
            yield chunk


def _ratios(squares: Tensor) -> list[Tensor]:
    """Returns a scalar per row: |w| / |u|, and 1 where one of them is 0."""
    weights, updates = squares.sqrt().unbind(1)
    return list(torch.where((weights > 0) & (updates > 0), weights / updates, 1.0).unbind())


def _batches(ranges: Sequence[_Range]) -> Iterator[list[_Range]]:
    """Yields the ranges of one group that are computed by one call of each operation."""
    by_group: dict[int, list[_Range]] = {}
    for one in ranges:
        if one.weight.numel():
            by_group.setdefault(id(one.group), []).append(one)
    for same in by_group.values():
        if same[0].weight.device.type != "cpu":
            yield same
            continue
        batch: list[_Range] = []
        for chunk in (chunk for one in same for chunk in one.chunks()):
            if batch and sum(b.weight.numel() for b in batch) + chunk.weight.numel() > _CHUNK:
                yield batch
                batch = []
            batch.append(chunk)
        yield batch


def _make_updates(ranges: Sequence[_Range], factor: Tensor | None) -> None:
    """Updates the moments; computes the updates before their ratio, and the norms."""
    group = ranges[0].group
    b1, b2 = group["betas"]
    weights, gradients = [one.weight for one in ranges], [one.gradient for one in ranges]
    ms, vs, updates = [one.m for one in ranges], [one.v for one in ranges], [one.update for one in ranges]
    if factor is not None:
        gradients = list(torch._foreach_mul(gradients, factor))
    torch._foreach_lerp_(ms, gradients, 1.0 - b1)
    torch._foreach_mul_(vs, b2)
    torch._foreach_addcmul_(vs, gradients, gradients, 1.0 - b2)
    scales, offsets = zip(*(one.corrections() for one in ranges), strict=True)
    torch._foreach_copy_(updates, vs)
    torch._foreach_sqrt_(updates)
    torch._foreach_mul_(updates, scales)
    torch._foreach_add_(updates, offsets)
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, ms)
    if group["weight_decay"] != 0:
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
    for one in ranges:
        if one.bits is not None:
            dropped = ~unpack_bits(one.bits, one.weight.numel()).view(one.weight.shape)
            one.weight.masked_fill_(dropped, 0.0)
            one.update.masked_fill_(dropped, 0.0)
    if group["weight_decay"] != 0:
        for i, tensors in enumerate((weights, updates)):
            for one, norm in zip(ranges, torch._foreach_norm(tensors), strict=True):
                one.norms[i].append(norm)


def _sum_of_squares(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns the sum of squares of these norms, in float64."""
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(list(norms)).double().square().sum()
