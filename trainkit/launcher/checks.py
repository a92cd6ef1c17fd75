"""Checks of all hosts at once, before a job starts on them."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Literal

from trainkit.launcher.facts import facts
from trainkit.launcher.ssh import Connection, HostError

PATIENCE_S, REPEAT_S = 2.0, 10.0
CLOCK_S = 5.0
PLAN = (
    "reach every host by ssh, without a password, and start Python there",
    "compare Python, torch and trainkit with those of this machine, and processes with GPUs",
    "look for the working directory, and for a difference of clocks above 5 s",
    "write a file into the folder of run_dir on the first host, and look for it on the others",
    "listen on the port of the rendezvous on the first host, and connect to it from the others",
)

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What the checks have found on a host.

    Args:
        host: its name.
        facts: as `trainkit.launcher.facts` reads them there.
        errors: why the job cannot run there.
        warnings: what the user should know.
        num_processes: of the job on this host.
    """

    host: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    num_processes: int = 1

    def lines(self) -> list[str]:
        """What a user is told: a line for the errors, or for the facts, and one for each warning."""
        if self.errors:
            return [f"error: {self.host}: {'; '.join(self.errors)}"]
        known = ", ".join(f"{name} {self.facts[name]}" for name in ("python", "torch", "trainkit"))
        gpus, many = self.facts["num_gpus"], self.num_processes
        what = f"{gpus} GPU{'s' * (gpus != 1)}" if gpus else "no GPU"
        line = f"{self.host}: {known}; {what}, {many} process{'es' * (many != 1)}"
        return [line, *(f"warning: {self.host}: {text}" for text in self.warnings)]


@dataclass(frozen=True)
class Wanted:
    """What a job needs of its hosts.

    Args:
        directory: the working directory, the same on all hosts.
        environment: variables for all hosts.
        run_dir: a folder that all hosts must share; None: there is none.
        device: `auto`, `cpu` or `cuda`, as configured.
        address: of the rendezvous; empty: the first host's own.
        port: of the rendezvous; 0: one that is free.
    """

    directory: str
    environment: Mapping[str, str]
    run_dir: str | None = None
    device: Literal["auto", "cpu", "cuda"] | str = "auto"
    address: str = ""
    port: int = 0


async def check(connections: Sequence[Connection], wanted: Wanted, say: Say) -> tuple[list[Verdict], str]:
    """Opens connections, and checks the hosts at their other ends, all at the same time.

    Args:
        connections: one a host, not opened yet; the first is the host of the rendezvous.
        wanted: what the job needs.
        say: called with a line about what is waited for, where a check takes more than two seconds.

    Returns:
        The verdict on each host, and the endpoint of the rendezvous, `address:port`, empty where there is none.
    """
    verdicts = [Verdict(connection.host.name) for connection in connections]
    here = await asyncio.to_thread(facts)
    pairs = list(zip(connections, verdicts, strict=True))
    await _all([_examine(*pair, wanted, here) for pair in pairs], verdicts, "to be reached and examined", say)
    if wanted.device != "cpu":
        _compare_gpus(verdicts)
    meeting = ""
    if not verdicts[0].errors:
        able = [pair for pair in pairs if not pair[1].errors]
        await _share(able, wanted, say)
        meeting = await _meet(able, wanted, say)
        await _all([_forget(*able[0])], [able[0][1]], "to close the port", say)
    return verdicts, meeting


async def _all(tasks: Sequence[Awaitable[None]], verdicts: Sequence[Verdict], what: str, say: Say) -> None:
    """Waits for tasks, one a verdict; a host that is lost in one has an error."""
    pending = {asyncio.ensure_future(task): verdict for task, verdict in zip(tasks, verdicts, strict=True)}
    patience_s = PATIENCE_S
    while pending:
        done, _ = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            verdict = pending.pop(task)
            try:
                task.result()
            except HostError as error:
                verdict.errors.append(error.reason)
        if not done:
            say(f"waiting for {', '.join(verdict.host for verdict in pending.values())} {what} ...")
            patience_s = REPEAT_S


async def _examine(connection: Connection, verdict: Verdict, wanted: Wanted, here: Mapping[str, Any]) -> None:
    await connection.open()
    began, before = time.monotonic(), time.time()
    clock = float((await connection.ask("clock"))["time"])
    took_s = time.monotonic() - began
    source = files("trainkit.launcher").joinpath("facts.py").read_text()
    answer = await connection.ask(
        "prepare", 130.0, directory=wanted.directory, environment=dict(wanted.environment), facts=source
    )
    if "missing" in answer:
        verdict.errors.append(f"there is no folder {wanted.directory}, the working directory (--directory names it)")
        return
    if "error" in answer:
        verdict.errors.append(f"Python cannot read its facts: {answer['error']}")
        return
    verdict.facts = answer
    verdict.errors += _differences(answer, here)
    ahead_s = clock - before - took_s / 2
    if abs(ahead_s) - took_s / 2 > CLOCK_S:
        verdict.warnings.append(f"its clock is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}")
    _count_processes(connection, verdict, wanted.device)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("python", "torch", "trainkit"):
        if there[name] is None:
            found.append(f"{name} cannot be imported, here it is {here[name]}: install it, or use --python or --env")
        elif there[name] != here[name]:
            found.append(f"{name} {there[name]}, here {here[name]}: install the same version on all hosts")
    if not found and there["source"] != here["source"]:
        found.append(
            f"trainkit {there['trainkit']} has other files ({there['source']}) than here ({here['source']}): "
            f"install the same ones on all hosts"
        )
    return found


def _count_processes(connection: Connection, verdict: Verdict, device: str) -> None:
    num_gpus, slots = verdict.facts["num_gpus"] or 0, connection.host.slots
    wants_gpus = device != "cpu" and num_gpus > 0
    verdict.num_processes = slots or (num_gpus if wants_gpus else 1)
    if device == "cuda" and num_gpus == 0:
        verdict.errors.append("device=cuda, and it has no GPU")
    elif wants_gpus and verdict.num_processes > num_gpus:
        verdict.errors.append(
            f"{verdict.num_processes} processes and {num_gpus} GPUs: give it {num_gpus}, or device=cpu"
        )
    elif wants_gpus and verdict.num_processes < num_gpus:
        verdict.warnings.append(f"has {num_gpus} GPUs, of which {verdict.num_processes} are used")


def _compare_gpus(verdicts: Sequence[Verdict]) -> None:
    """Without `device`, a host without GPUs would compute on CPUs, while the others wait for it."""
    some = next((verdict for verdict in verdicts if verdict.facts.get("num_gpus")), None)
    for verdict in verdicts:
        if some is not None and verdict.facts and not verdict.facts["num_gpus"] and not verdict.errors:
            verdict.errors.append(f"it has no GPU, and {some.host} has: leave it out, or use device=cpu")


async def _share(able: Sequence[tuple[Connection, Verdict]], wanted: Wanted, say: Say) -> None:
    if wanted.run_dir is None:
        return
    (first, verdict), others = able[0], able[1:]
    name = f".trainkit-launch-{secrets.token_hex(8)}"
    left: dict[str, Any] = {}

    async def leave() -> None:
        left.update(await first.ask("leave", path=wanted.run_dir, name=name))

    async def see(connection: Connection, verdict: Verdict) -> None:
        if not (await connection.ask("see", path=left["path"])).get("seen"):
            verdict.errors.append(
                f"does not see a file that {first.host.name} wrote into {left['path'].rpartition('/')[0]}: "
                f"run_dir={wanted.run_dir}: must be on a file system that all hosts share"
            )

    await _all([leave()], [verdict], "to write a file", say)
    if "error" in left:
        verdict.errors.append(f"run_dir={wanted.run_dir}: {left['error']}")
    if "path" in left:
        await _all([see(*pair) for pair in others], [pair[1] for pair in others], "to see a file of another", say)


async def _meet(able: Sequence[tuple[Connection, Verdict]], wanted: Wanted, say: Say) -> str:
    """Tries the port of the rendezvous; its endpoint."""
    (first, verdict), others = able[0], able[1:]
    found: dict[str, Any] = {}

    async def listen() -> None:
        found.update(await first.ask("listen", port=wanted.port))
        found["address"] = wanted.address or await _address(first, [pair[0] for pair in others])

    async def reach(connection: Connection, verdict: Verdict) -> None:
        answer = await connection.ask("reach", address=found["address"], port=found["port"])
        if "error" in answer:
            verdict.errors.append(
                f"cannot reach {first.host.name} at {found['address']}, port {found['port']}: {answer['error']} "
                f"(--rdzv-endpoint HOST:PORT chooses another address or port)"
            )

    await _all([listen()], [verdict], "to listen on a port", say)
    if "error" in found:
        verdict.errors.append(f"port {wanted.port} cannot be used: {found['error']} (--rdzv-endpoint HOST:PORT)")
    if "port" not in found:
        return ""
    await _all([reach(*pair) for pair in others], [pair[1] for pair in others], "to reach the first host", say)
    return endpoint(found["address"], found["port"])


def endpoint(address: str, port: int | str) -> str:
    """An address and a port as one text.

    Example:
        >>> endpoint("10.0.0.1", 29400), endpoint("fe80::1", 29400)
        ('10.0.0.1:29400', '[fe80::1]:29400')
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


async def _address(first: Connection, others: Sequence[Connection]) -> str:
    """The first host's own address for the others: that of ssh, unless it is the loopback or ssh does not tell."""
    if not _is_loopback(first.address):
        return first.address
    away = next((other.address for other in others if not _is_loopback(other.address)), None)
    answer = {} if away is None else await first.ask("route", to=away)
    return str(answer.get("address", first.address) or first.host.target.rpartition("@")[2])


def _is_loopback(address: str) -> bool:
    return not address or ip_address(address).is_loopback


async def _forget(connection: Connection, verdict: Verdict) -> None:
    await connection.ask("forget")
