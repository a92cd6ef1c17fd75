"""ReducePlan: how the ranks of a job all-reduce a gradient. Pure data, the same on all ranks."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["flat", "ring", "hierarchical", "leader"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WireDtype = Literal["exact", "fp16", "bf16", "int8"]
WIRE_DTYPES: tuple[WireDtype, ...] = get_args(WireDtype)
INT8_BLOCK = 256
"""Elements that share one float32 scale in the int8 format."""


@dataclass(frozen=True, kw_only=True)
class ReducePlan:
    """How a bucket of gradients is summed over all ranks.

    Args:
        kind: `flat`: one all-reduce over the ranks in their order, the default of PyTorch.
            `ring`: one all-reduce, with the ranks in the order of `groups`, one after another.
            `hierarchical`: reduce-scatter in each group, all-reduce between the ranks that have the same position in
            their groups, all-gather in each group. All groups have the same size.
            `leader`: reduce to the first rank of each group, all-reduce between these, broadcast in each group.
        groups: ranks with fast links between them, such as those of a host. Each rank is in one group; `flat` has one.
        wire_dtype: the format of gradients between groups; `exact` is their own dtype.
        chunk_bytes: size of the chunks of a bucket that go through the phases one after another, so that the phases
            overlap; None: the bucket is one chunk.

    Example:
        >>> ReducePlan(kind="leader", groups=((0, 1), (2, 3)), wire_dtype="bf16").describe()
        'leader over 2 groups of 2, bf16 between them'
    """

    kind: Kind
    groups: tuple[tuple[int, ...], ...]
    wire_dtype: WireDtype = "exact"
    chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        ranks = sorted(rank for group in self.groups for rank in group)
        assert ranks == list(range(len(ranks))), self.groups
        assert (self.kind == "flat") == (len(self.groups) == 1), self.groups
        assert self.kind != "hierarchical" or len({len(group) for group in self.groups}) == 1, self.groups
        assert self.wire_dtype == "exact" or self.kind in ("hierarchical", "leader")

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return sum(len(group) for group in self.groups)

    def describe(self) -> str:
        """The plan as text, such as `hierarchical over 2 groups of 4, int8 between them, chunks of 4 MB`."""
        if self.kind == "flat":
            return "flat"
        sizes = sorted({len(group) for group in self.groups})
        of = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        words = f"{self.kind} over {len(self.groups)} groups of {of}"
        if self.wire_dtype != "exact":
            words += f", {self.wire_dtype} between them"
        if self.chunk_bytes is not None:
            words += f", chunks of {self.chunk_bytes / 1e6:.3g} MB"
        return words

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ReducePlan":
        """The inverse of `to_dict`."""
        return cls(**{**plain, "groups": tuple(tuple(group) for group in plain["groups"])})

    def digest(self) -> str:
        """A hash of the fields, the same on every rank and in every run."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def flat(world_size: int) -> ReducePlan:
    """The plan of one all-reduce over `world_size` ranks in their order."""
    return ReducePlan(kind="flat", groups=(tuple(range(world_size)),))
