"""RankStatus: what a rank last published about itself."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """What a rank last published about itself, for the other ranks' watchdogs.

    Args:
        rank: the rank.
        host: the name of its machine.
        pid: its process.
        time: seconds since the epoch, by its host's clock.
        step: the training step that it is at.
        beats: batches and other marks of progress that it has passed.
        waited_s: seconds since the last of these.
        line: the line that it is at, as in a `Location`.
        function: of torch or trainkit, called from that line.
        waits: whether it waits for other ranks, or for a device that may.
        moves: whether it was elsewhere a moment before.
        is_at_prompt: whether a debugger or a notebook waits for its user.
        is_training: whether it is in a loop over batches.
        is_fetching: whether it waits for a batch.
        has_left: whether it closed its runtime.
        was_stopped: whether the process was stopped at this line, until another rank woke it.
        collective: the last one in torch's flight recorder; only in answers to an alarm.
        steps: steps begun, for the search for stragglers, as are the three totals that follow.
        data_s: seconds in which those steps waited for their batches.
        compute_s: seconds from a batch to the first call that waits for other ranks, of `num_computed` steps.
        num_computed: steps that `compute_s` is a total of.
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
        """All fields as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "RankStatus":
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def place(self) -> str:
        """Function and line, such as `in all_reduce at train.py:42 (train_step)`."""
        return f"in {self.function} at {self.line}" if self.function else f"at {self.line}"
