"""Diagnosis of a run that hangs: which ranks waited, and which one did not arrive."""

from collections.abc import Mapping, Sequence

from trainkit.health.rank_status import RankStatus


def diagnose(
    answers: Mapping[int, RankStatus], last_seen: Mapping[int, RankStatus], world_size: int, now: float
) -> str:
    """Says which ranks waited where, and which did not arrive.

    Args:
        answers: of the ranks that answered the alarm.
        last_seen: the last status of each rank, where it has published one.
        world_size: ranks of the job.
        now: seconds since the epoch.

    Returns:
        Sentences.
    """
    silent = [rank for rank in range(world_size) if rank not in answers]
    missing = {rank: _silent(rank, last_seen.get(rank), now) for rank in silent}
    waiting = [status for status in answers.values() if status.waits]
    elsewhere = [status for status in answers.values() if not status.waits]
    if waiting and elsewhere:
        missing |= {status.rank: _responding(status) for status in elsewhere}
    elif not silent:
        return _all_alike(list(answers.values()))
    else:
        waiting = list(answers.values())
    return " ".join([*_groups(waiting, "waited"), *(missing[rank] for rank in sorted(missing))])


def _all_alike(statuses: Sequence[RankStatus]) -> str:
    """All answered, and all wait or none does: a minority at another place did not arrive."""
    by_place: dict[tuple[int, str], list[RankStatus]] = {}
    for status in statuses:
        by_place.setdefault((status.beats, status.line), []).append(status)
    most = max(by_place.values(), key=len)
    if not statuses[0].waits:
        none_waited = ["None of them waited for another."] if len(statuses) > 1 else []
        return " ".join([*_groups(statuses, "was"), *none_waited])
    if len(by_place) == 1:
        same = "All arrived at the same place: a link or a device may be down."
        return " ".join([*_groups(statuses, "waited"), same])
    if 2 * len(most) > len(statuses):
        rest = [status for status in statuses if status not in most]
        return " ".join([*_groups(most, "waited"), *(_responding(status) for status in rest)])
    return " ".join([*_groups(statuses, "waited"), "They waited for one another at different places."])


def _groups(statuses: Sequence[RankStatus], verb: str) -> list[str]:
    by_place: dict[tuple[int, str], list[RankStatus]] = {}
    for status in statuses:
        by_place.setdefault((status.step, status.place), []).append(status)
    sentences = []
    for (step, place), group in by_place.items():
        predicate = "were" if verb == "was" and len(group) > 1 else verb
        ranks = _ranks([status.rank for status in group])
        sentences.append(f"{ranks} {predicate} at step {step}, {place}{_collective(group[0])}.")
    return sentences


def _responding(status: RankStatus) -> str:
    who = f"Rank {status.rank} (process {status.pid} on {status.host}) did not arrive: it"
    if status.was_stopped:
        return f"{who} was stopped, {status.place}."
    if not status.is_training:
        return f"{who} has left its loop over batches after step {status.step}, {status.place}."
    verb = "waits elsewhere" if status.waits else "is"
    return f"{who} {verb} at step {status.step}, {status.place}{_collective(status)}."


def _silent(rank: int, status: RankStatus | None, now: float) -> str:
    if status is None:
        return f"Rank {rank} did not arrive: it has published no status, since it never asked for a batch."
    who = f"Rank {rank} (process {status.pid} on {status.host}) did not arrive:"
    if status.has_left:
        return f"{who} it closed its runtime after step {status.step}."
    return (
        f"{who} it has published no status for {max(0.0, now - status.time):.0f} s (stopped or disconnected), and was "
        f"last seen at step {status.step}, {status.place}."
    )


def _collective(status: RankStatus) -> str:
    return f" [{status.collective}]" if status.collective and status.waits else ""


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
