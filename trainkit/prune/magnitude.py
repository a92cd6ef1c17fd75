"""Magnitude pruning: the smallest weights become 0, more of them during training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainkit.distributed.shard import Shard
from trainkit.engine.engine import Engine
from trainkit.errors import ConfigError, UsageError, nearest
from trainkit.ops import MaskedLinear
from trainkit.ops.bits import pack_bits, unpack_bits
from trainkit.optim.sharded import ShardedOptimizer, mask_after_steps

Scope = Literal["layer", "global"]
Structure = Literal["unstructured", "2:4"]
_BUFFER = "mask_bits"


@dataclass(frozen=True, kw_only=True)
class Cubic:
    """The fraction of masked weights by the number of updates (Zhu & Gupta, arXiv 1710.01878, section 3, equation 1).

        s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))^3   for t = begin, begin + every, ..., end

    Args:
        final: the last fraction, below 1.
        begin: updates before the first masks.
        end: updates before the last masks; the same as `begin` masks at once.
        every: updates between masks.
        initial: the first fraction.

    Raises:
        ConfigError: for values out of range.

    >>> schedule = Cubic(final=0.8, begin=100, end=300, every=50)
    >>> [schedule(step) for step in (99, 100, 120, 300, 350)]
    [None, 0.0, None, 0.8, None]
    >>> round(schedule(200), 6)
    0.7
    """

    final: float
    begin: int
    end: int
    every: int = 100
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final < 1.0:
            raise ConfigError(
                f"schedule.initial={self.initial}, schedule.final={self.final}: must be 0 <= initial <= final < 1"
            )
        if not 0 <= self.begin <= self.end:
            raise ConfigError(f"schedule.begin={self.begin}, schedule.end={self.end}: must be 0 <= begin <= end")
        if self.every < 1:
            raise ConfigError(f"schedule.every={self.every}: must be 1 or more")

    def __call__(self, step: int) -> float | None:
        """The sparsity that masks made after update `step` have; None where none are to be made."""
        if not self.begin <= step <= self.end or ((step - self.begin) % self.every and step != self.end):
            return None
        left = (self.end - step) / (self.end - self.begin) if self.end > self.begin else 0.0
        return self.final + (self.initial - self.final) * left**3


class Magnitude:
    """Masks the weights of least magnitude in every layer of `modules`, to the sparsity of `schedule`.

        pruner = trainkit.prune.Magnitude(engine, schedule=trainkit.prune.Cubic(final=0.9, begin=1000, end=9000))
        ...
        engine.step()
        pruner.step(step)   # updates made; every rank calls

    target: an Engine under any strategy, or a module, with its `optimizer`.
    modules: classes whose `weight` is masked where it is trained; a weight that several layers share is masked once.
    scope: `layer`: every layer gets the schedule's sparsity.  `global`: all layers together, by one threshold.
    structure: `2:4` masks the two smaller of four neighbours in a row of a weight, which `MaskedLinear.to_sparse_2_4`
        turns into a faster layer; the schedule goes up to 0.5, and below it groups that lose least come first.

    Masked weights are exactly 0 from then on, after every update; a mask that was set stays. Where magnitudes are
    equal, the earlier element is masked, so that ranks agree and a repeated run has the same masks.
    trainkit.optim's Lamb and AdamW mask inside their step; other optimizers are followed by a multiplication.
    Each layer keeps its mask in a buffer `mask_bits`, an eighth of a byte a weight, which checkpoints hold: make the
    pruner before `runtime.load`, and after it where the checkpoint is of a run without pruning.
    Raises ConfigError for values that are not allowed, layers that are not there and sizes that do not fit.
    """

    def __init__(
        self,
        target: Engine | nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        schedule: Cubic,
        modules: Sequence[type[nn.Module]] = (nn.Linear,),
        scope: Scope = "layer",
        structure: Structure = "unstructured",
    ) -> None:
        _check(schedule, scope, structure)
        self.schedule, self.scope, self.structure = schedule, scope, structure
        self._engine = target if isinstance(target, Engine) else None
        self.module = target.module if isinstance(target, Engine) else target
        found = self._engine.optimizer if self._engine is not None else optimizer
        if found is None:
            raise UsageError("Magnitude of a module needs its optimizer; one of an Engine has it")
        self.optimizer = found
        self.layers = self._find(tuple(modules))
        shapes = {name: shard.shape for name, shard in self._weights().items()}
        if structure == "2:4":
            for name in self.layers:
                _check_groups(name, shapes[name])
        for name, layer in self.layers.items():
            if _BUFFER not in layer._buffers:
                device = next(layer.parameters()).device
                layer.register_buffer(_BUFFER, pack_bits(torch.ones(shapes[name], dtype=torch.bool, device=device)))
        self._masking: RemovableHandle | None = None
        self._told: dict[str, tuple[int, int]] = {}
        self._apply()
        # A checkpoint that is loaded writes to the buffers, behind the optimizer's back.
        self._noticing = self.optimizer.register_step_pre_hook(self._notice)

    @torch.no_grad()
    def step(self, step: int) -> bool:
        """To be called after every update, with the number of updates made; whether there are new masks.

        Collective where the strategy spreads weights, when the schedule asks for masks: every rank calls.
        """
        sparsity = self.schedule(step)
        if sparsity is None:
            return False
        names = list(self.layers)
        for group in [names] if self.scope == "global" else [[name] for name in names]:
            self._mask(group, sparsity)
        self._apply()
        return True

    @property
    def sparsity(self) -> float:
        """Share of the weights of `layers` that are masked."""
        masks = [self.mask(name) for name in self.layers]
        return 1.0 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def mask(self, name: str) -> Tensor:
        """bool, of the shape of parameter `name`: False where it is masked."""
        shape = self._weights()[name].shape
        return unpack_bits(self._bits(name), shape.numel()).view(shape)

    def remove(self) -> None:
        """Ends the masking and takes the buffers away: weights are what they are now, and names as before.

        Collective: every rank calls.
        """
        self._noticing.remove()
        if self._masking is not None:
            self._masking.remove()
        self._tell({})
        for layer in self.layers.values():
            if not isinstance(layer, MaskedLinear):
                del layer._buffers[_BUFFER]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _find(self, modules: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
        names: dict[Any, str] = {p: name for name, p in self.module.named_parameters() if p.requires_grad}
        found: dict[str, nn.Module] = {}
        for part in self.module.modules():
            weight = getattr(part, "weight", None)
            if isinstance(part, modules) and weight is not None and weight in names:
                found.setdefault(names[weight], part)
        if not found:
            wanted = ", ".join(kind.__name__ for kind in modules)
            raise ConfigError(f"modules={wanted}: the module has no such layer with a weight that is trained")
        return found

    def _weights(self) -> dict[str, Shard]:
        if self._engine is not None:
            return self._engine.state.weights()
        return {name: Shard.whole(p) for name, p in self.module.named_parameters()}

    def _bits(self, name: str) -> Tensor:
        bits = self.layers[name]._buffers[_BUFFER]
        assert bits is not None
        return bits

    def _mask(self, names: Iterable[str], sparsity: float) -> None:
        """New masks of those layers, by one threshold."""
        weights = self._weights()
        masks = {name: self.mask(name) for name in names}
        # What is masked already counts as less than anything.
        sizes = {name: weights[name].full().abs().to(mask.device) for name, mask in masks.items()}
        sizes = {name: size.masked_fill(~masks[name], -1.0) for name, size in sizes.items()}
        scores = {name: self._scores(size) for name, size in sizes.items()}
        lengths = [len(score) for score in scores.values()]
        share = sparsity if self.structure == "unstructured" else 2 * sparsity
        chosen = lowest(torch.cat(list(scores.values())), round(share * sum(lengths)))
        for (name, size), lost in zip(sizes.items(), chosen.split(lengths), strict=True):
            self._bits(name).copy_(pack_bits(masks[name] & ~self._spread(size, lost)))

    def _scores(self, size: Tensor) -> Tensor:
        """What is compared: elements, or what a group of four loses."""
        if self.structure == "unstructured":
            return size.flatten()
        return size.view(-1, 4).sort(dim=1).values[:, :2].sum(dim=1)

    def _spread(self, size: Tensor, lost: Tensor) -> Tensor:
        """bool, of the shape of `size`: the elements that go where `lost` says so of what is compared."""
        if self.structure == "unstructured":
            return lost.view(size.shape)
        smaller = size.view(-1, 4).argsort(dim=1, stable=True)[:, :2]
        groups = torch.zeros_like(size, dtype=torch.bool).view(-1, 4)
        return groups.scatter(1, smaller, lost[:, None].expand(-1, 2)).view(size.shape)

    def _apply(self) -> None:
        self._tell({name: self._bits(name) for name in self.layers})

    def _tell(self, bits: dict[str, Tensor]) -> None:
        self._told = {name: (id(tensor), tensor._version) for name, tensor in bits.items()}
        if self._engine is not None:
            self._engine.state.set_masks(bits)
        elif isinstance(self.optimizer, ShardedOptimizer):
            parameters = dict(self.module.named_parameters())
            self.optimizer.set_masks({parameters[name]: tensor for name, tensor in bits.items()})
        else:
            if self._masking is not None:
                self._masking.remove()
            self._masking = mask_after_steps(self.optimizer, self._weights(), bits)

    def _notice(self, *_: Any) -> None:
        now = {name: (id(self._bits(name)), self._bits(name)._version) for name in self._told}
        if now != self._told:
            self._apply()


def lowest(scores: Tensor, count: int) -> Tensor:
    """bool [n]: the `count` lowest of `scores` [n]; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    below, equal = scores < threshold, scores == threshold
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def _check(schedule: Cubic, scope: str, structure: str) -> None:
    for key, value, allowed in (("scope", scope, get_args(Scope)), ("structure", structure, get_args(Structure))):
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: must be one of {', '.join(allowed)}.{nearest(value, allowed)}")
    if structure == "2:4" and schedule.final > 0.5:
        raise ConfigError(
            f"schedule.final={schedule.final} with structure='2:4', which masks half: must be at most 0.5"
        )


def _check_groups(name: str, shape: torch.Size) -> None:
    if len(shape) != 2 or shape[1] % 4:
        raise ConfigError(
            f"structure='2:4': {name!r} has shape {[*shape]}; needed are two dimensions, the last a multiple of 4"
        )
