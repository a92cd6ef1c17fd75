"""ReducePlan: how the ranks of a job sum a gradient. Pure data, the same on all of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["flat", "ring", "hierarchical", "leader"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Format = Literal["exact", "fp16", "bf16", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
INT8_BLOCK = 256
"""Elements that share one float32 scale in the int8 format."""


@dataclass(frozen=True, kw_only=True)
class ReducePlan:
    """How a bucket of gradients is summed over all ranks.

    kind: `flat`: one all-reduce over the ranks in their order, as torch does it.
        `ring`: one all-reduce, its ring in the order of `groups`, one after another.
        `hierarchical`: reduce-scatter in each group, all-reduce between the ranks that stand at the same place of
            their groups, all-gather in each group. All groups have the same size.
        `leader`: reduce to the first rank of each group, all-reduce between these, broadcast in each group.
    groups: the ranks behind each fast island, such as a host; every rank is in one. One group for `flat`.
    format: what crosses between groups; `exact`: the gradient's own type.
    chunk_bytes: of the bucket, that go through the legs one after another, so that the legs overlap; None: whole.
    """

    kind: Kind
    groups: tuple[tuple[int, ...], ...]
    format: Format = "exact"
    chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        ranks = sorted(rank for group in self.groups for rank in group)
        assert ranks == list(range(len(ranks))), self.groups
        assert (self.kind == "flat") == (len(self.groups) == 1), self.groups
        assert self.kind != "hierarchical" or len({len(group) for group in self.groups}) == 1, self.groups
        assert self.format == "exact" or self.kind in ("hierarchical", "leader")

    @property
    def world_size(self) -> int:
        return sum(len(group) for group in self.groups)

    def describe(self) -> str:
        """In words: `hierarchical over 2 groups of 4, int8 between them, chunks of 4 MB`."""
        if self.kind == "flat":
            return "flat"
        sizes = sorted({len(group) for group in self.groups})
        of = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        words = f"{self.kind} over {len(self.groups)} groups of {of}"
        if self.format != "exact":
            words += f", {self.format} between them"
        if self.chunk_bytes is not None:
            words += f", chunks of {self.chunk_bytes / 1e6:.3g} MB"
        return words

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ReducePlan":
        """The inverse of `to_dict`."""
        return cls(**{**plain, "groups": tuple(tuple(group) for group in plain["groups"])})

    def digest(self) -> str:
        """The same for the same plan, on every rank and in every run."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def flat(world_size: int) -> ReducePlan:
    return ReducePlan(kind="flat", groups=(tuple(range(world_size)),))
