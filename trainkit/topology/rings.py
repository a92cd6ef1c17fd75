"""Rings through GPUs that fit on the links of a host at the same time, as NCCL searches for its channels. Pure."""

from collections.abc import Mapping

Edge = tuple[int, bool]
"""A link's number in `Host.links`, and whether it is used from a to b."""
SAME = 1 - 1e-9
MAX_RINGS = 32
SEARCH_STEPS = 1000
_FITS = 1.000001

Shares = Mapping[tuple[str, str], Mapping[Edge, float]]


def widest(
    devices: tuple[str, ...],
    between: Mapping[tuple[str, str], Mapping[Edge, float]],
    capacity: Mapping[Edge, float],
    bound: float,
) -> float:
    """The bandwidth of each device over rings through all of them.

    Args:
        devices: of the rings.
        between: by pair, the links that its messages pass, and the GB/s that they reach there. Those of pairs without
            access to each other's memory reach less, and take the link for longer.
        capacity: GB/s of each link.
        bound: GB/s of the device with the narrowest links, at which the search ends.

    Returns:
        GB/s; 0 where there is no ring.
    """
    shares = {ends: {edge: capacity[edge] / gb for edge, gb in edges.items()} for ends, edges in between.items()}
    widths = sorted({min(edges.values()) for edges in between.values() if edges}, reverse=True)
    best = 0.0
    for speed in sorted({width / share for width in widths for share in (1, 2, 3, 4)}, reverse=True):
        left = dict(capacity)
        count, before = 0, -1
        while (
            count > before
            and best < bound * SAME
            and count < MAX_RINGS
            and (ring := _ring(devices, shares, left, speed))
        ):
            before = count
            # The same ring again, and its reverse, while they fit, so that the remaining bandwidth stays regular.
            for again in (ring, ring[::-1]):
                most: dict[Edge, float] = {}
                for ends in zip(again, (*again[1:], again[0]), strict=True):
                    for edge, share in shares[ends].items():
                        most[edge] = most.get(edge, 0.0) + share * speed
                while count < MAX_RINGS and all(left[e] * _FITS >= amount for e, amount in most.items()):
                    count += 1
                    for edge, amount in most.items():
                        left[edge] -= amount
        best = max(best, count * speed)
    return best


def _ring(
    devices: tuple[str, ...],
    shares: Shares,
    left: Mapping[Edge, float],
    speed: float,
) -> tuple[str, ...] | None:
    """A cycle through all devices over the GB/s `left` on the links, or None; the least used links are tried first.

    `shares` is what the messages of a pair take of the links that they pass, for each GB/s.
    """
    steps = SEARCH_STEPS
    need: dict[Edge, float] = {}

    def fits(a: str, b: str) -> bool:
        share = shares.get((a, b))
        return share is not None and all(
            left[e] * _FITS >= speed * of_edge + need.get(e, 0.0) for e, of_edge in share.items()
        )

    def use(share: Mapping[Edge, float], amount: float) -> None:
        for edge, of_edge in share.items():
            need[edge] = need.get(edge, 0.0) + amount * of_edge

    def extend(ring: tuple[str, ...]) -> tuple[str, ...] | None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            return None
        if len(ring) == len(devices):
            return ring if fits(ring[-1], ring[0]) else None
        others = [b for b in devices if b not in ring and fits(ring[-1], b)]
        others.sort(key=lambda b: -min(left[e] - need.get(e, 0.0) for e in shares[ring[-1], b]))
        for other in others:
            share = shares[ring[-1], other]
            use(share, speed)
            if found := extend((*ring, other)):
                return found
            use(share, -speed)
        return None

    return extend(devices[:1])
