"""Which ranks waited, and which one did not arrive: a paragraph, from what is known of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A rank's sign of life: what it last told the others about itself.

    step: that it is at.  beats: batches and other marks of progress that it has passed.  waited_s: since the last one.
    line, function, waits: where it stands, as a `Stand` has them.  moves: it stood elsewhere a moment before.
    is_training: it is in its loop over batches.  is_fetching: it waits for one.  has_left: it closed its runtime.
    was_stopped: it was, at this line, until another rank woke it.
    collective: the last one by torch's flight recorder; answers to an alarm have it.  time: by its host's clock.
    steps, data_s, compute_s, num_computed: totals for the search for stragglers.
    """

    rank: int
    host: str
    pid: int
    time: float
    step: int = 0
    beats: int = 0
    waited_s: float = 0.0
    line: str = ""
    function: str = ""
    waits: bool = False
    moves: bool = False
    is_at_prompt: bool = False
    is_training: bool = False
    is_fetching: bool = False
    has_left: bool = False
    was_stopped: bool = False
    collective: str = ""
    steps: int = 0
    data_s: float = 0.0
    compute_s: float = 0.0
    num_computed: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Sign":
        return cls(**json.loads(text))

    @property
    def place(self) -> str:
        """`in all_reduce at train.py:42 (train_step)`."""
        return f"in {self.function} at {self.line}" if self.function else f"at {self.line}"


def judge(answers: Mapping[int, Sign], last_seen: Mapping[int, Sign], world_size: int, now: float) -> str:
    """Sentences that say which ranks waited where, and which did not arrive.

    answers: of the ranks that answered the alarm.  last_seen: what each last told, if it did.  now: of the epoch.
    """
    silent = [rank for rank in range(world_size) if rank not in answers]
    at_fault = {rank: _of_silent(rank, last_seen.get(rank), now) for rank in silent}
    waiting = [sign for sign in answers.values() if sign.waits]
    elsewhere = [sign for sign in answers.values() if not sign.waits]
    if waiting and elsewhere:
        at_fault |= {sign.rank: _of_responding(sign) for sign in elsewhere}
    elif not silent:
        return _of_parted(list(answers.values()))
    else:
        waiting = list(answers.values())
    return " ".join([*_groups(waiting, "waited"), *(at_fault[rank] for rank in sorted(at_fault))])


def _of_parted(signs: Sequence[Sign]) -> str:
    """All answered, and all wait, or none does: those that are where the fewest are did not arrive."""
    by_place: dict[tuple[int, str], list[Sign]] = {}
    for sign in signs:
        by_place.setdefault((sign.beats, sign.line), []).append(sign)
    most = max(by_place.values(), key=len)
    if not signs[0].waits:
        return " ".join([*_groups(signs, "stood"), *(["None of them waited for another."] if len(signs) > 1 else [])])
    if len(by_place) == 1:
        return " ".join([*_groups(signs, "waited"), "All arrived at the same place: a link or a device may be down."])
    if 2 * len(most) > len(signs):
        rest = [sign for sign in signs if sign not in most]
        return " ".join([*_groups(most, "waited"), *(_of_responding(sign) for sign in rest)])
    return " ".join([*_groups(signs, "waited"), "They waited for one another at different places."])


def _groups(signs: Sequence[Sign], verb: str) -> list[str]:
    by_place: dict[tuple[int, str], list[Sign]] = {}
    for sign in signs:
        by_place.setdefault((sign.step, sign.place), []).append(sign)
    return [
        f"{_ranks([sign.rank for sign in group])} {verb} at step {step}, {place}{_collective(group[0])}."
        for (step, place), group in by_place.items()
    ]


def _of_responding(sign: Sign) -> str:
    who = f"Rank {sign.rank} (process {sign.pid} on {sign.host}) did not arrive: it"
    if sign.was_stopped:
        return f"{who} had been stopped, {sign.place}."
    if not sign.is_training:
        return f"{who} is out of its loop over batches after step {sign.step}, {sign.place}."
    stands = "waits elsewhere" if sign.waits else "stands"
    return f"{who} {stands} at step {sign.step}, {sign.place}{_collective(sign)}."


def _of_silent(rank: int, sign: Sign | None, now: float) -> str:
    if sign is None:
        return f"Rank {rank} did not arrive: nothing was ever heard of it; it never asked for a batch."
    who = f"Rank {rank} (process {sign.pid} on {sign.host}) did not arrive:"
    if sign.has_left:
        return f"{who} it closed its runtime after step {sign.step}."
    return (
        f"{who} nothing has been heard of it for {max(0.0, now - sign.time):.0f} s (stopped, or cut off), "
        f"and it was last seen at step {sign.step}, {sign.place}."
    )


def _collective(sign: Sign) -> str:
    return f" [{sign.collective}]" if sign.collective and sign.waits else ""


def _ranks(ranks: Sequence[int]) -> str:
    """`Rank 2`, `Ranks 0 and 3`, `Ranks 0 to 6 and 8`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][-1] == rank - 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    parts = []
    for span in spans:
        parts += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else [str(rank) for rank in span]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"Rank{'s' if len(ranks) > 1 else ''} {text}"
