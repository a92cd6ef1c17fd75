"""The report on machines: figures of all ranks and links, and which of them are slow or wrong. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainkit.topology.measure import Timing

SLOW = 0.7
"""Below this share of the median a rank or link is named."""
OF_HARDWARE = 0.4
"""Below this share of what the hardware should carry, links of a kind are named, all together."""


@dataclass(frozen=True)
class RankFigure:
    """A rank's matrix products.

    Args:
        rank: of the job.
        host: its name.
        device: its name.
        gflops_per_s: of the fastest product.
        num_wrong: rows of products that differ from their check sums.
        problems: of its GPU.
    """

    rank: int
    host: str
    device: str
    gflops_per_s: float
    num_wrong: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LinkFigure:
    """Messages from one rank to another, while the other sent as many.

    Args:
        a: the rank that sent.
        b: the rank that received.
        gb_per_s: of large messages.
        latency_us: of a small message.
        hardware_gb_per_s: that the hardware should carry; None: it is not known.
    """

    a: int
    b: int
    gb_per_s: float
    latency_us: float
    hardware_gb_per_s: float | None = None


@dataclass(frozen=True)
class Finding:
    """Something slow or wrong.

    Args:
        text: a sentence that names it.
        share: of the median, or of what the hardware should carry; None: it is not slow but wrong, or another problem.
        is_wrong: whether numbers are wrong, with which no run should start.
    """

    text: str
    share: float | None = None
    is_wrong: bool = False


@dataclass(frozen=True)
class MachineReport:
    """What was measured.

    Args:
        ranks: a figure for each.
        links: between ranks that were paired, one for each direction.
        all_reduce: over all ranks; None for one.
    """

    ranks: tuple[RankFigure, ...]
    links: tuple[LinkFigure, ...] = ()
    all_reduce: Timing | None = None

    def findings(self, at_least: float | None = None) -> list[Finding]:
        """What is slow or wrong, the wrong first.

        Args:
            at_least: the share below which a rank or a link is slow: of the median, and of what the hardware should
                carry; None: 0.7 and 0.4.
        """
        slow, of_hardware = (SLOW, OF_HARDWARE) if at_least is None else (at_least, at_least)
        found = [*self._wrong(), *self._slow_ranks(slow)]
        for kind, links in self._kinds().items():
            found += [*self._below_hardware(kind, links, of_hardware), *self._slow_links(links, slow)]
        found += [Finding(f"{self._name(r.rank)}: {text}") for r in self.ranks for text in r.problems]
        return found

    def refusal(self, at_least: float | None = None) -> str | None:
        """Why a run should not start; None where it may.

        Args:
            at_least: as for `findings`; None: ranks and links may be slow.
        """
        for finding in self.findings(at_least):
            if finding.is_wrong or (at_least is not None and finding.share is not None):
                return finding.text
        return None

    def lines(self) -> list[str]:
        """The figures as text, without the findings."""
        hosts = list(dict.fromkeys(figure.host for figure in self.ranks))
        slowest = min(self.ranks, key=lambda figure: figure.gflops_per_s)
        lines = [
            f"{_many(len(self.ranks), 'rank')} on {_many(len(hosts), 'host')}: {' and '.join(self._devices())}",
            f"matrix products: {self._median_rate():.0f} GFLOP/s (median), {slowest.gflops_per_s:.0f} the slowest, "
            f"{self._name(slowest.rank)}",
        ]
        for kind, links in self._kinds().items():
            worst = min(links, key=lambda link: link.gb_per_s)
            hardware = _hardware(links)
            lines.append(
                f"links {kind}: {_median(links):.3g} GB/s (median of {len(links)}), {worst.gb_per_s:.3g} the slowest, "
                f"{self._name(worst.a)} to {self._name(worst.b)}"
                + (f"; {hardware:.3g} by the hardware" if hardware is not None else "")
            )
        if self.all_reduce is not None:
            timing = self.all_reduce
            lines.append(
                f"all-reduce of {timing.num_bytes / 1e6:.0f} MB: {timing.time_us / 1e3:.3g} ms, "
                f"{timing.bus_gb_per_s:.3g} GB/s bus bandwidth"
            )
        return lines

    # -- inside ------------------------------------------------------------------------------------------------------

    def _devices(self) -> list[str]:
        return list(dict.fromkeys(figure.device for figure in self.ranks))

    def _median_rate(self) -> float:
        # The higher of the middle two: with two ranks the slower one would otherwise hide itself.
        return statistics.median_high(figure.gflops_per_s for figure in self.ranks)

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self.ranks[rank].host}"

    def _kinds(self) -> Mapping[str, list[LinkFigure]]:
        kinds: dict[str, list[LinkFigure]] = {}
        for link in self.links:
            inside = self.ranks[link.a].host == self.ranks[link.b].host
            kinds.setdefault("within hosts" if inside else "between hosts", []).append(link)
        return kinds

    def _wrong(self) -> Iterator[Finding]:
        for figure in self.ranks:
            if figure.num_wrong:
                text = f"{self._name(figure.rank)} multiplies wrongly: {figure.num_wrong} rows of its matrix products"
                yield Finding(f"{text} differ from their check sums", is_wrong=True)
        if self.all_reduce is not None and self.all_reduce.num_wrong:
            text = f"{self.all_reduce.num_wrong} elements of an all-reduce over all ranks are not the sum"
            yield Finding(text, is_wrong=True)

    def _slow_ranks(self, slow: float) -> Iterator[Finding]:
        median = self._median_rate()
        for figure in self.ranks:
            share = figure.gflops_per_s / median
            if share < slow:
                rates = f"{share:.2f} of the median rank's matrix products ({figure.gflops_per_s:.0f} of {median:.0f}"
                yield Finding(f"{self._name(figure.rank)} is slow: {rates} GFLOP/s)", share)

    def _below_hardware(self, kind: str, links: Sequence[LinkFigure], slow: float) -> Iterator[Finding]:
        """Whether the median link of a kind is slow: to compare the links with one another would not show it."""
        hardware, median = _hardware(links), _median(links)
        if hardware is not None and median < slow * hardware:
            share = median / hardware
            rates = f"{share:.2f} of their hardware ({median:.3g} of {hardware:.3g} GB/s, medians)"
            yield Finding(f"links {kind} are slow: {rates}", share)

    def _slow_links(self, links: Sequence[LinkFigure], slow: float) -> Iterator[Finding]:
        """Slow links of one kind, by host where all of a host's are, else by pair of ranks."""
        median = _median(links)
        by_pair: dict[tuple[int, int], float] = {}
        for link in links:
            pair = (min(link.a, link.b), max(link.a, link.b))
            by_pair[pair] = min(by_pair.get(pair, link.gb_per_s), link.gb_per_s)
        named: set[tuple[int, int]] = set()
        for what, pairs in self._groups(by_pair):
            fastest = max(by_pair[pair] for pair in pairs)
            if fastest < slow * median and not named.issuperset(pairs):
                named |= set(pairs)
                share = fastest / median
                how = "is slow to all others" if len(pairs) > 1 else "is a slow link"
                rates = f"{share:.2f} of the median ({fastest:.3g} of {median:.3g} GB/s)"
                yield Finding(f"{what} {how}: {rates}", share)

    def _groups(self, pairs: Mapping[tuple[int, int], float]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Pairs that may be slow for one reason: those of a host, of a rank, and each pair alone."""
        of_host: dict[str, list[tuple[int, int]]] = defaultdict(list)
        of_rank: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for a, b in pairs:
            for rank in (a, b):
                of_rank[rank].append((a, b))
            hosts = {self.ranks[a].host, self.ranks[b].host}
            for host in hosts if len(hosts) > 1 else ():
                of_host[host].append((a, b))
        partners = {
            host: {self.ranks[rank].host for pair in its for rank in pair} - {host} for host, its in of_host.items()
        }
        yield from ((host, its) for host, its in of_host.items() if len(partners[host]) > 1)
        yield from ((self._name(rank), its) for rank, its in of_rank.items() if len(its) > 1)
        yield from ((f"{self._name(a)} - {self._name(b)}", [(a, b)]) for a, b in pairs)


def _median(links: Sequence[LinkFigure]) -> float:
    return statistics.median_high(link.gb_per_s for link in links)


def _hardware(links: Sequence[LinkFigure]) -> float | None:
    known = [link.hardware_gb_per_s for link in links if link.hardware_gb_per_s is not None]
    return statistics.median_high(known) if known else None


def _many(num: int, noun: str) -> str:
    return f"{num} {noun}{'s' * (num != 1)}"
