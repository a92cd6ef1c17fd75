"""Comm: the options of gradient reduction. Its arguments are the keys of `conf/comm/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainkit.errors import ConfigError, nearest
from trainkit.planning.reduce_plan import KINDS, WIRE_DTYPES, Kind, WireDtype

Plan = Literal["auto", "powersgd"] | Kind
PLANS = ("auto", *KINDS, "powersgd")


@dataclass(frozen=True, kw_only=True)
class Comm:
    """How gradients are all-reduced under `strategy=ddp`.

    Args:
        plan: a kind of ReducePlan, `auto` or `powersgd`. `auto` reads the links, predicts the time of each plan, and
            benchmarks the three best where one is predicted to take at least 5 % less time than `flat`. `powersgd` is
            PyTorch's PowerSGD, which sends low-rank factors of the gradients.
        wire_dtype: the lowest precision in which gradients cross between hosts. `exact` is their own dtype; `fp16` and
            `bf16` halve the bytes; `int8` quarters them, with error feedback: the quantization error is carried into
            the next step.
        chunk_mb: size in MiB of the chunks into which a bucket is cut, so that the phases of a plan overlap;
            None: the size that is predicted to be fastest.
        topology: a file from `trainkit topo probe --output`, or another one that `trainkit topo show --topology` reads,
            which is used in place of reading the machines.
        matrix_rank: of the factors of PowerSGD.
        start_after: steps with exact all-reduces before PowerSGD starts. PyTorch keeps its state in no checkpoint: a
            resumed run starts with these steps again.

    Raises:
        ConfigError: for a value that is not allowed, or an option that `plan` does not use.
    """

    plan: Plan = "auto"
    wire_dtype: WireDtype = "exact"
    chunk_mb: float | None = None
    topology: str | Path | None = None
    matrix_rank: int = 2
    start_after: int = 1000

    def __post_init__(self) -> None:
        for name, allowed in (("plan", PLANS), ("wire_dtype", WIRE_DTYPES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    f"comm.{name}={value!r}: must be one of {', '.join(allowed)}.{nearest(str(value), allowed)}"
                )
        if self.wire_dtype != "exact" and self.plan in ("flat", "ring", "powersgd"):
            raise ConfigError(
                f"comm.wire_dtype={self.wire_dtype}: comm.plan={self.plan} communicates in one phase, without "
                f"a phase between hosts to compress; use comm=auto, hierarchical or leader"
            )
        if self.chunk_bytes is not None and self.chunk_bytes < 1:
            raise ConfigError(f"comm.chunk_mb={self.chunk_mb}: must be a number above 0, or null")
        if self.chunk_mb is not None and self.plan in ("flat", "ring", "powersgd"):
            raise ConfigError(
                f"comm.chunk_mb={self.chunk_mb}: comm.plan={self.plan} does not cut buckets into chunks; "
                f"use comm=auto, hierarchical or leader"
            )
        if self.matrix_rank < 1 or self.start_after < 2:
            raise ConfigError(
                f"comm.matrix_rank={self.matrix_rank} and comm.start_after={self.start_after}: "
                f"must be at least 1 and at least 2"
            )

    @property
    def chunk_bytes(self) -> int | None:
        """`chunk_mb` in bytes."""
        return None if self.chunk_mb is None else int(self.chunk_mb * 2**20)

    def check(self, strategy: str, *, own_plan: Kind | None, deterministic: bool) -> None:
        """Checks that a strategy can reduce gradients as these options say.

        Args:
            strategy: its name, for the message.
            own_plan: the plan by which it reduces gradients itself; None: it takes any. See `Strategy.own_plan`.
            deterministic: whether a resumed run must have the same bits.

        Raises:
            ConfigError: where it cannot.
        """
        if self.plan == "powersgd" and deterministic:
            raise ConfigError(
                "comm=powersgd: with deterministic=true a resumed run must give the same bits as an "
                "uninterrupted one, and PyTorch's PowerSGD has no state in checkpoints; use comm=hierarchical "
                "comm.wire_dtype=int8, which has"
            )
        if own_plan is None or (self.plan in ("auto", "flat", own_plan) and self.wire_dtype == "exact"):
            return
        asked = f"comm={self.plan}" if self.plan not in ("auto", "flat") else f"comm.wire_dtype={self.wire_dtype}"
        raise ConfigError(
            f"{asked}: strategy={strategy} reduces gradients itself, by the plan {own_plan}; use comm=auto with it, or "
            f"strategy=ddp"
        )
