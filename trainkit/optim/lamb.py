"""LAMB: Adam's direction, of a length that is a share of each parameter's own (You et al., arXiv 1904.00962)."""

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
from trainkit.optim.pieces import PiecewiseOptimizer, at

_BLOCK = 2**16  # elements; on a CPU, all that one step of the formula reads stays in its cache


class Lamb(PiecewiseOptimizer):
    """Algorithm 2 of the paper with phi(x) = x, as BERT-large was trained with it. Of a parameter w, at step t:

        g = gradient * min(1, max_grad_norm / norm of all gradients)
        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w
        w = w - lr * ratio * u,   ratio = |w| / |u|

    The norms are those of whole parameters, wherever they are held. ratio is 1 in groups without weight decay, and
    where either norm is 0. A weight that is masked (`set_masks`) counts in neither norm, and stays 0.

    max_grad_norm: largest norm of all gradients together; None for none. An Engine takes this over: it clips once, to
        the smaller of its own `max_grad_norm` and this one, and with its formula, max_grad_norm / (norm + 1e-6).
    bias_correction: false leaves out both divisions by 1 - b^t.
    Groups may have their own lr, betas, eps, weight_decay and bias_correction. State: `step`, `exp_avg`, `exp_avg_sq`.
    Raises ConfigError for values out of range.
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
                f"optimizer.max_grad_norm={max_grad_norm}: allowed is a norm above 0, or null for no clipping"
            )
        self.max_grad_norm = max_grad_norm
        own = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**own, "bias_correction": bias_correction})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        given = {**self.defaults, **param_group}
        for key in ("lr", "eps", "weight_decay"):
            if not given[key] >= 0:
                raise ConfigError(f"optimizer.{key}={given[key]}: allowed is 0 or more")
        if len(given["betas"]) != 2 or not all(0 <= beta < 1 for beta in given["betas"]):
            raise ConfigError(f"optimizer.betas={given['betas']}: allowed are two numbers, 0 <= beta < 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Collective over the group of `set_pieces`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [part for group in self.param_groups for part in self._parts(group)]
        if not parts:
            return loss
        compiled = self._compiled(parts)
        factor = self._clip_factor([part.gradient for part in parts])
        if compiled is not None:
            squares = lamb_moments_(compiled, [part.gradient for part in parts], factor)
            lamb_apply_(compiled, self._summed(squares, parts))
        else:
            for blocks in _batches(parts):
                _make_updates(blocks, factor)
            squares = torch.stack(
                [_sum_of_squares(norms, part.weight.device) for part in parts for norms in part.norms]
            )
            for part, ratio in zip(parts, _ratios(self._summed(squares.view(-1, 2), parts)), strict=True):
                part.weight.addcmul_(part.update, ratio.to(part.weight), value=-part.group["lr"])
            self._copy(self._stepped())
        return loss

    # -- inside ------------------------------------------------------------------------------------------------------

    def _parts(self, group: dict[str, Any]) -> list["_Part"]:
        parts = []
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
                parts.append(_Part(group, int(state["step"]), held, at(self._bits, p, i), at(self._copies, p, i)))
        return parts

    def _clip_factor(self, gradients: Sequence[Tensor]) -> Tensor | None:
        # Whoever sets pieces clips: one rank's gradients are not all of them then.
        if self.max_grad_norm is None or self._pieces is not None or not gradients:
            return None
        norm = _sum_of_squares(torch._foreach_norm(list(gradients)), gradients[0].device).sqrt()
        return (self.max_grad_norm / norm).clamp(max=1.0).to(gradients[0].dtype)

    def _summed(self, squares: Tensor, parts: Sequence["_Part"]) -> Tensor:
        """Squared norms of whole parameters, [number of parts, 2], of those of this rank's parts."""
        if self._group is None or not any(part.group["weight_decay"] for part in parts):
            return squares
        summed = squares.to(self._sum_device)
        dist.all_reduce(summed, group=self._group)
        return summed.to(squares.device)

    def _compiled(self, parts: Sequence["_Part"]) -> LambTensors | None:
        """The parts as the compiled kernels take them; None where they do not."""
        first = parts[0].weight
        if not all(part.fits_kernels(first.device) for part in parts) or not is_fused("lamb", first):
            return None
        nothing = first.new_empty(0, dtype=torch.uint8)
        return LambTensors(
            [part.weight for part in parts],
            [part.m for part in parts],
            [part.v for part in parts],
            [nothing if part.bits is None else part.bits for part in parts],
            [nothing if part.copy is None else part.copy for part in parts],
            torch.tensor([part.hyper() for part in parts], dtype=torch.float64),
        )


class _Part:
    """A piece of a parameter and what belongs to it in one step. A block of it is one, too."""

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
        """Of the weights and of their update, by blocks."""

    def corrections(self) -> tuple[float, float]:
        """(scale, offset) with which m / (scale sqrt(v) + offset) divides m and v by 1 - b^t as well."""
        (b1, b2), eps = self.group["betas"], self.group["eps"]
        if not self.group["bias_correction"]:
            return 1.0, eps
        c1 = 1.0 - b1**self.step
        return c1 / math.sqrt(1.0 - b2**self.step), c1 * eps

    def hyper(self) -> tuple[float, ...]:
        """A row of `LambTensors.hyper`."""
        b1, b2 = self.group["betas"]
        return 1.0 - b1, b1, 1.0 - b2, b2, *self.corrections(), self.group["weight_decay"], self.group["lr"]

    def fits_kernels(self, device: torch.device) -> bool:
        tensors = (self.weight, self.gradient, self.m, self.v)
        return all(t.dtype == torch.float32 and t.device == device and t.is_contiguous() for t in tensors) and (
            self.copy is None or self.copy.dtype == torch.bfloat16
        )

    @cached_property
    def update(self) -> Tensor:
        """u; to be filled in."""
        return torch.empty_like(self.weight)

    def blocks(self) -> Iterator["_Part"]:
        """Itself in parts of at most `_BLOCK` elements, which share its norms."""
        tensors = (self.weight, self.gradient, self.m, self.v, self.update)
        if self.weight.numel() <= _BLOCK or not all(tensor.is_contiguous() for tensor in tensors):
            yield self
            return
        split = [tensor.view(-1).split(_BLOCK) for tensor in tensors]
        masks = self.bits.split(_BLOCK // 8) if self.bits is not None else [None] * len(split[0])
        for *held, update, bits in zip(*split, masks, strict=True):
            block = _Part(self.group, self.step, held, bits)
            block.norms, block.update = self.norms, update
            yield block


def _ratios(squares: Tensor) -> list[Tensor]:
    """A scalar of each row: |w| / |u|, and 1 where one of them is 0."""
    weights, updates = squares.sqrt().unbind(1)
    return list(torch.where((weights > 0) & (updates > 0), weights / updates, 1.0).unbind())


def _batches(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """What is computed by one call of each operation: of one group each."""
    by_group: dict[int, list[_Part]] = {}
    for part in parts:
        if part.weight.numel():
            by_group.setdefault(id(part.group), []).append(part)
    for same in by_group.values():
        if same[0].weight.device.type != "cpu":
            yield same
            continue
        batch: list[_Part] = []
        for block in (block for part in same for block in part.blocks()):
            if batch and sum(b.weight.numel() for b in batch) + block.weight.numel() > _BLOCK:
                yield batch
                batch = []
            batch.append(block)
        yield batch


def _make_updates(parts: Sequence[_Part], factor: Tensor | None) -> None:
    """Takes the gradients into the moments; fills in the updates before their ratio, and the norms."""
    group = parts[0].group
    b1, b2 = group["betas"]
    weights, gradients = [part.weight for part in parts], [part.gradient for part in parts]
    ms, vs, updates = [part.m for part in parts], [part.v for part in parts], [part.update for part in parts]
    if factor is not None:
        gradients = list(torch._foreach_mul(gradients, factor))
    torch._foreach_lerp_(ms, gradients, 1.0 - b1)
    torch._foreach_mul_(vs, b2)
    torch._foreach_addcmul_(vs, gradients, gradients, 1.0 - b2)
    scales, offsets = zip(*(part.corrections() for part in parts), strict=True)
    torch._foreach_copy_(updates, vs)
    torch._foreach_sqrt_(updates)
    torch._foreach_mul_(updates, scales)
    torch._foreach_add_(updates, offsets)
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, ms)
    if group["weight_decay"] != 0:
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
    for part in parts:
        if part.bits is not None:
            dropped = ~unpack_bits(part.bits, part.weight.numel()).view(part.weight.shape)
            part.weight.masked_fill_(dropped, 0.0)
            part.update.masked_fill_(dropped, 0.0)
    if group["weight_decay"] != 0:
        for i, tensors in enumerate((weights, updates)):
            for part, norm in zip(parts, torch._foreach_norm(tensors), strict=True):
                part.norms[i].append(norm)


def _sum_of_squares(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    """Of tensors with these norms, in float64."""
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(list(norms)).double().square().sum()
