"""A server between a client and a real one that does to some requests what networks and stores do."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Faults:
    """What happens to the requests of a method that come next, GET unless said; each entry is used up by one of them.

    "503", "429": the store is busy. "cut": the connection ends after half of the body. "stall": no byte comes.
    "flip": a bit of the body is another. "short": the whole body is shorter than asked. "ok": nothing.
    """

    url: str
    plan: list[str] = field(default_factory=list)
    always: str = ""
    method: str = "GET"
    latency_s: float = 0.0
    drops_ranges: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    heads: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str:
        with self.lock:
            return self.plan.pop(0) if self.plan else self.always


@contextmanager
def faulty(port: int) -> Iterator[Faults]:
    """A proxy before the server at `port` of this machine."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    faults = Faults(f"http://127.0.0.1:{listener.getsockname()[1]}")
    ends = threading.Event()

    def accept() -> None:
        while not ends.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_serve, args=(client, port, faults, ends), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield faults
    finally:
        ends.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(client: socket.socket, port: int, faults: Faults, ends: threading.Event) -> None:
    with client, suppress(OSError):
        file = client.makefile("rb")
        while not ends.is_set():
            head = _head(file)
            if not head:
                return
            method = head.split(b" ", 1)[0].decode()
            with faults.lock:
                faults.counts[method] += 1
                faults.heads.append(head.decode())
            body = _body(client, file, head)
            fault = faults.next() if method == faults.method else ""
            time.sleep(faults.latency_s)
            if fault == "stall":
                ends.wait(60)
                return
            if fault in ("503", "429", "403"):
                client.sendall(b"HTTP/1.1 %s Said\r\nContent-Length: 0\r\n\r\n" % fault.encode())
                continue
            if fault == "cut" and method != "GET":  # before the server has it
                return
            answer, body = _ask(port, head, body, drops_ranges=faults.drops_ranges)
            if fault == "cut":
                client.sendall(answer + body[: len(body) // 2])
                return
            if fault == "flip":
                body = bytes([body[0] ^ 1]) + body[1:]
            if fault == "short":
                answer = answer.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) - 1))
                body = body[:-1]
            client.sendall(answer + body)


def _head(file) -> bytes:
    lines = []
    while line := file.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _body(client: socket.socket, file, head: bytes) -> bytes:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if fields.get(b"expect") == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fields.get(b"transfer-encoding") != b"chunked":
        return file.read(int(fields.get(b"content-length", 0)))
    parts = []
    while size := file.readline():
        parts += [size, file.read(int(size, 16) + 2)]
        if not int(size, 16):
            break
    return b"".join(parts)


def _ask(port: int, head: bytes, body: bytes, *, drops_ranges: bool) -> tuple[bytes, bytes]:
    lines = head.split(b"\r\n")
    kept = [line for line in lines[1:] if not (drops_ranges and line.lower().startswith(b"range:"))]
    kept = [line for line in kept if not line.lower().startswith((b"connection:", b"expect:")) and line]
    with socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(b"\r\n".join([lines[0], *kept, b"Connection: close", b"", body]))
        whole = b"".join(iter(lambda: server.recv(1 << 16), b""))
    answer, _, body = whole.partition(b"\r\n\r\n")
    return answer.replace(b"Connection: close\r\n", b"").replace(b"\r\nConnection: close", b"") + b"\r\n\r\n", body
