"""What the processes of a run tell one another beside JAX: that they live, that their next batch is there, why they leave.

JAX's collectives wait for a process that will never come. Its coordination service notices one that is gone by heartbeats
alone, and ends the others with a stack trace. Here every process holds a connection to process 0, which passes on what
concerns all. The system closes the connection of a process that dies, however it dies, so the others know at once; one that
is frozen, or whose host is gone, falls silent. Only sockets, a thread and JSON lines; nothing of it is computed with.
"""

import contextlib
import dataclasses
import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping

_JOIN = 30.0  # seconds in which all have to connect, once JAX has found them
# Seconds in which a process that hears of another's error may come to an end by itself. It is shorter than `leaving` delays
# an abort: if process 0 left without waiting, JAX's service went with it.
_GRACE = 5.0
_MOST = 2000  # letters of an error that are passed on


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why a process was told to stop.

    Attributes:
      process: the number of the one at which it began.
      reason: what that one says, or what it is: "was lost (…)".
      status: exit status for all.
      lost: it is gone; otherwise it has met an error and says so.
    """

    process: int
    reason: str
    status: int
    lost: bool = False


class Peers:
    """This process's connections to the others: process 0 has one to each, each other one has one to process 0.

    Args:
      process: the number of this one.
      links: connected sockets by number of process.
      patience: seconds without a word after which a process is taken for lost.
      lost_status: exit status where a process is lost.
      end: called once, in a thread, with a `Stop` when this process should end; not for an error if it is ending already.
    """

    def __init__(
        self,
        process: int,
        links: Mapping[int, socket.socket],
        patience: float,
        lost_status: int,
        end: Callable[[Stop], None],
        grace: float = _GRACE,
    ):
        self.process, self._links, self._patience, self._grace = process, dict(links), patience, grace
        self._lost_status, self._end = lost_status, end
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._round, self._agreed, self._verdict = 0, 0, None  # of `agree`
        self._reported = {}  # in process 0: the round that each process waits in, and its problem
        self._stop: Stop | None = None
        self._leaving, self._closed, self._departed = False, False, set()
        self._rest = dict.fromkeys(self._links, b"")
        self._selector = selectors.DefaultSelector()
        for number, link in self._links.items():
            link.settimeout(10.0)  # for one that does not read: the system keeps some 100 KB for it before
            self._selector.register(link, selectors.EVENT_READ, number)
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def agree(self, problem: str | None) -> tuple[int, str] | Stop | None:
        """Let all processes say whether they can take the next step; every one calls it before every step.

        Args:
          problem: why this one cannot; None if it can.

        Returns:
          None: all can. (process, problem): the first that cannot, the same answer in every process, and none takes the
          step. A `Stop`: another process has ended.
        """
        with self._changed:
            self._round += 1
            number = self._round
        problem = None if problem is None else problem[:_MOST]
        if self.process == 0:
            self._report(0, number, problem)
        else:
            self._send(0, "report", number, problem)
        with self._changed:
            self._changed.wait_for(lambda: self._agreed >= number or self._stop is not None)
            return self._verdict if self._agreed >= number else self._stop

    def late(self) -> list[int]:
        """Return, in process 0, the processes that have not said whether they have their batch, though others have."""
        with self._changed:
            newest = max((round_ for round_, _ in self._reported.values()), default=0)
            waited = newest > self._agreed
            return [n for n in (0, *self._links) if waited and self._reported.get(n, (0, None))[0] < newest]

    def stopped(self, seconds: float = 0.0) -> Stop | None:
        """Return why this process should stop, waiting some seconds for the news; None if nothing is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop is not None, seconds)
            return self._stop

    def leave(self, reason: str | None = None, status: int = 0) -> None:
        """Tell the others that this process leaves: in good order, or for a reason that is theirs as well."""
        with self._changed:
            if self._leaving:
                return
            self._leaving = True
            self._changed.notify_all()
        self._tell(
            "bye" if reason is None else "error", *([] if reason is None else [self.process, reason[:_MOST], status])
        )

    def close(self) -> None:
        """End the connections."""
        self.leave()
        self._closed = True
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        interval = max(0.05, min(5.0, self._patience / 5))
        heard = dict.fromkeys(self._links, time.monotonic())
        sent, before = 0.0, time.monotonic()
        while not self._closed:
            for key, _ in self._selector.select(interval):
                heard[key.data] = time.monotonic()
                self._read(key.data)
            now = time.monotonic()
            if now - before > 3 * interval + 1:  # this process itself was held up: what came meanwhile is not read yet
                heard = dict.fromkeys(self._links, now)
            before = now
            if now - sent >= interval:
                self._tell("alive")
                sent = now
            for number in [n for n in self._links if n not in self._departed and now - heard[n] > self._patience]:
                self._lose(number, f"gave no sign of life for {self._patience:g} s")

    def _read(self, number: int) -> None:
        try:
            data = self._links[number].recv(1 << 16)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._links[number])
            self._lose(number, "its connection was closed")
            return
        *lines, self._rest[number] = (self._rest[number] + data).split(b"\n")
        for line in lines:
            self._hear(number, *json.loads(line))

    def _hear(self, number: int, word: str, *more) -> None:
        """Take in what another process says; process 0 passes it on."""
        if word == "report":
            self._report(number, *more)
        elif word == "agreed":
            self._settle(*more)
        elif word == "bye":
            self._departed.add(number)
        elif word in ("error", "lost"):
            process, reason, status = more
            if process == number:
                self._departed.add(number)
            self._pass_on(number, word, *more)
            self._halt(Stop(process, reason, status, word == "lost"))

    def _report(self, number: int, round_: int, problem: str | None) -> None:
        """In process 0: note what one process says of its next batch; when all have said it, tell all."""
        with self._changed:
            self._reported[number] = (round_, problem)
            if len(self._reported) <= len(self._links) or {r for r, _ in self._reported.values()} != {round_}:
                return
            problems = [(n, text) for n, (_, text) in sorted(self._reported.items()) if text is not None]
        self._tell("agreed", round_, problems[0] if problems else None)
        self._settle(round_, problems[0] if problems else None)

    def _settle(self, round_: int, verdict: list | tuple | None) -> None:
        with self._changed:
            self._agreed, self._verdict = round_, None if verdict is None else tuple(verdict)
            self._changed.notify_all()

    def _lose(self, number: int, how: str) -> None:
        if number in self._departed or self._closed:
            return
        self._departed.add(number)
        stop = Stop(number, f"was lost ({how})", self._lost_status, lost=True)
        self._pass_on(number, "lost", stop.process, stop.reason, stop.status)
        self._halt(stop)

    def _pass_on(self, number: int, *words) -> None:
        if self.process == 0:
            for other in self._links:
                if other != number:
                    self._send(other, *words)

    def _halt(self, stop: Stop) -> None:
        """End this process, unless it comes to its end by itself: with the same error as the other, for instance."""
        with self._changed:
            if self._stop is not None:
                return
            self._stop = stop
            self._changed.notify_all()

        def end() -> None:
            with self._changed:
                leaving = self._changed.wait_for(lambda: self._leaving, 0.0 if stop.lost else self._grace)
            if not leaving or stop.lost:  # it may be the one that this process waits for at the end
                self._end(stop)

        threading.Thread(target=end, name="peers end", daemon=True).start()

    def _tell(self, *words) -> None:
        for number in self._links:
            self._send(number, *words)

    def _send(self, number: int, *words) -> None:
        if number in self._departed:
            return
        with self._sending, contextlib.suppress(OSError):  # that it is gone is noticed where it is read
            self._links[number].sendall(json.dumps(words).encode() + b"\n")


def connect(client, host: str, process: int, count: int) -> dict[int, socket.socket] | None:
    """Return this process's connections, see `Peers`; None, in every process, if not all could connect.

    Args:
      client: of JAX's coordination service, which passes on where process 0 listens.
      host: of process 0.
      process, count: the number of this process, and how many there are.
    """
    if process == 0:
        return _listen(client, count)
    try:
        port, word = json.loads(client.blocking_key_value_get("cp2_jax/peers", int(1000 * 2 * _JOIN)))
        link = socket.create_connection((host, port), timeout=_JOIN / 2)
        link.sendall(json.dumps([word, process]).encode() + b"\n")
        link.settimeout(2 * _JOIN)  # until all others have come
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return {0: link} if _line(link) == "complete" else None
    except (OSError, ValueError, RuntimeError):
        return None  # a firewall, for instance: process 0 waits in vain, and tells all


def _listen(client, count: int) -> dict[int, socket.socket] | None:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    links, end, word = {}, time.monotonic() + _JOIN, secrets.token_hex(8)
    with socket.create_server(("", 0), family=family, backlog=count, dualstack_ipv6=family == socket.AF_INET6) as server:
        client.key_value_set("cp2_jax/peers", json.dumps([server.getsockname()[1], word]))
        while len(links) < count - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                link, _ = server.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.settimeout(min(left, 5.0))
                said, number = _line(link)
                if said == word:
                    links[number] = link
    complete = len(links) == count - 1
    for link in links.values():
        with contextlib.suppress(OSError):
            link.sendall(json.dumps("complete" if complete else "incomplete").encode() + b"\n")
            if not complete:
                link.close()
    return links if complete else None


def _line(link: socket.socket):
    """Read one line; what comes after it stays where it is."""
    data = b""
    while not data.endswith(b"\n"):
        if not (more := link.recv(1)) or len(data) > 200:
            raise ValueError("no line")
        data += more
    return json.loads(data)
