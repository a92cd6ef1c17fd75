"""Comm: what a user asks for, of how gradients are summed over ranks. Its arguments are those of `conf/comm/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainkit.errors import ConfigError, nearest
from trainkit.planning.reduce_plan import FORMATS, KINDS, Format, Kind

Plan = Literal["auto", "powersgd"] | Kind
PLANS = ("auto", *KINDS, "powersgd")
REDUCED_BY_DDP = ("single", "ddp")


@dataclass(frozen=True, kw_only=True)
class Comm:
    """How gradients are summed over ranks under `strategy=ddp`.

    plan: a kind of ReducePlan; `auto` reads the links, predicts what every plan would take, times the best three where
        one promises to be more than 5 % faster than `flat`, and keeps the fastest; `powersgd`: torch's own PowerSGD,
        which sends factors of low rank in place of gradients.
    wire_dtype: a format that gradients may have where they cross between hosts; `exact`: their own. `fp16` and `bf16`
        send half as much, `int8` a quarter, and sends what it left out with the next gradient.
    chunk_mb: pieces in which a bucket goes through the legs of a plan, in 2**20 bytes; null: as predicted best.
    topology: a JSON file, as `trainkit topo probe --output` writes it, in place of reading the machines.
    matrix_rank, start_after: of PowerSGD: of the factors; and the steps that are reduced as they are first. torch keeps
        its state in no checkpoint: a resumed run begins with these steps again.
    """

    plan: Plan = "auto"
    wire_dtype: Format = "exact"
    chunk_mb: float | None = None
    topology: str | Path | None = None
    matrix_rank: int = 2
    start_after: int = 1000

    def __post_init__(self) -> None:
        for name, allowed in (("plan", PLANS), ("wire_dtype", FORMATS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    f"comm.{name}={value!r}: allowed are {', '.join(allowed)}.{nearest(str(value), allowed)}"
                )
        if self.wire_dtype != "exact" and self.plan in ("flat", "ring", "powersgd"):
            raise ConfigError(
                f"comm.wire_dtype={self.wire_dtype}: comm.plan={self.plan} has no leg between hosts; "
                f"allowed with auto, hierarchical and leader"
            )
        if self.chunk_bytes is not None and self.chunk_bytes < 1:
            raise ConfigError(f"comm.chunk_mb={self.chunk_mb}: allowed is a number above 0, or null")
        if self.chunk_mb is not None and self.plan in ("flat", "ring", "powersgd"):
            raise ConfigError(
                f"comm.chunk_mb={self.chunk_mb}: comm.plan={self.plan} has no chunks; "
                f"allowed with auto, hierarchical and leader"
            )
        if self.matrix_rank < 1 or self.start_after < 2:
            raise ConfigError(
                f"comm.matrix_rank={self.matrix_rank} and comm.start_after={self.start_after}: "
                f"allowed are 1 or more, and 2 or more"
            )

    @property
    def chunk_bytes(self) -> int | None:
        return None if self.chunk_mb is None else int(self.chunk_mb * 2**20)

    def check(self, strategy: str, deterministic: bool) -> None:
        """Raises ConfigError where `strategy` reduces gradients by itself and this asks for more than that."""
        if self.plan == "powersgd" and deterministic:
            raise ConfigError(
                "comm=powersgd: with deterministic=true a resumed run must equal one that was not stopped, and torch's "
                "PowerSGD is kept in no checkpoint; use comm=hierarchical comm.wire_dtype=int8, which is"
            )
        if strategy in REDUCED_BY_DDP or (self.plan in ("auto", "flat") and self.wire_dtype == "exact"):
            return
        if strategy == "hsdp" and self.plan == "hierarchical" and self.wire_dtype == "exact":
            return  # which is what it does: shards within a host, replicates across
        asked = f"comm={self.plan}" if self.plan not in ("auto", "flat") else f"comm.wire_dtype={self.wire_dtype}"
        raise ConfigError(
            f"{asked}: strategy={strategy} reduces gradients by itself, on its way to shards; "
            f"use comm=auto or comm=flat with it, or strategy=ddp. strategy=hsdp is hierarchical by itself"
        )
