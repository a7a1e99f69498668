"""What a call costs a node, by the CPU time of its reactor's thread: a cluster of one in this process.

    .venv/bin/python -m bench.calls [--rounds 60] [--profile]

A call is INVITE with credentials, 100, 180, 200, ACK, BYE, 200, all through the proxy by its Record-Route: six messages
come and seven go, as with callgen. It ends when its transactions have: their last timers are let fire at once. What the
nodes share of a call is made, but there is nobody to send it to.

It prints the least of the rounds, since whatever else the machine does only adds to it. The kernel's part is included.
To compare two trees, run them in turns, with PYTHONSAFEPATH=1 PYTHONPATH=TREE:.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import re
import socket
import tempfile
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

from bench.node import DOMAIN, PASSWORD, PHONES, Lone
from sipha.sip.digest import ha1, ha2, response

CALLS = 30
"""How many are under way at once: about as many as callgen makes."""

PROXY, CALLER = ("127.0.8.100", 5060), ("127.0.8.200", 5998)
LATER = 40.0
"""Seconds after which no transaction is left (Timers J, L and M)."""

STEPS = ("INVITE", "180, 200", "ACK, BYE", "200", "timers")
BODY = (
    "v=0\r\no=u 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\na=sendrecv\r\n"
)
_COPIED = {
    name: re.compile(rf"^{name}: .*\r\n", re.MULTILINE)
    for name in ("Via", "Record-Route", "From", "To", "Call-ID", "CSeq")
}
_CALL = re.compile(r"^Call-ID: c([0-9]+)@", re.MULTILINE)
_TO = re.compile(r"^To: (.*)\r\n", re.MULTILINE)
_RECORD_ROUTE = re.compile(r"^Record-Route: (.*)\r\n", re.MULTILINE)


class Callers:
    """A phone that calls and one that answers, for all users of a node."""

    def __init__(self, node: Lone) -> None:
        self.messages: list[bytes] = []
        """The last message of each kind that came to a phone."""
        self._node = node
        self._callee = node.phones  # where all have registered
        self._caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._caller.bind(CALLER)
        self._caller.setblocking(False)
        self._caller.connect(PROXY)
        self._first = 0

    def stop(self) -> None:
        """Call no more."""
        self._caller.close()

    def round(self, profile: cProfile.Profile | None = None) -> list[float]:
        """Make CALLS calls; return the seconds that each of STEPS took."""
        numbers = range(self._first, self._first + CALLS)
        self._first += CALLS
        _, invites, first = self._serve([invite(number, self._node.nonce) for number in numbers], [], profile)
        answers = [answer(text, "SIP/2.0 " + status) for text in invites for status in ("180 Ringing", "200 OK")]
        answered, _, second = self._serve([], answers, profile)
        finals = [text for text in answered if text.startswith("SIP/2.0 200 ")]
        requests = [in_dialog(text, method) for text in finals for method in ("ACK", "BYE")]
        _, received, third = self._serve(requests, [], profile)
        byes = [answer(text, "SIP/2.0 200 OK") for text in received if text.startswith("BYE ")]
        ended, _, fourth = self._serve([], byes, profile)
        if not len(invites) == len(finals) == len(byes) == len(ended) == CALLS:
            raise RuntimeError(f"{len(invites)} of {CALLS} calls came, {len(ended)} ended")
        return [first, second, third, fourth, self._let_end(profile)]

    def _serve(
        self, caller: Sequence[bytes], callee: Sequence[bytes], profile: cProfile.Profile | None
    ) -> tuple[list[str], list[str], float]:
        """Send messages, and let the node work until it has answered: what came for caller and callee, and the time."""
        for message in caller:
            self._caller.send(message)
        for message in callee:
            self._callee.send(message)
        to_caller: list[str] = []
        to_callee: list[str] = []
        spent, idle = 0.0, 0
        while idle < 2:
            if profile is not None:
                profile.enable()
            begin = time.thread_time()
            self._node.reactor.iterate(0)
            spent += time.thread_time() - begin
            if profile is not None:
                profile.disable()
            before = len(to_caller) + len(to_callee)
            to_caller += _received(self._caller)
            to_callee += _received(self._callee)
            idle = idle + 1 if len(to_caller) + len(to_callee) == before else 0
        return to_caller, to_callee, spent

    def _let_end(self, profile: cProfile.Profile | None) -> float:
        """Let the timers fire that are to end the transactions."""
        endpoint = self._node.node.sip._endpoint  # noqa: SLF001  a bench may look behind
        layer = self._node.node.sip._layer  # noqa: SLF001
        assert endpoint is not None
        assert layer is not None
        later = self._node.reactor.seconds() + LATER
        if profile is not None:
            profile.enable()
        begin = time.thread_time()
        layer.handle_timer(later)
        endpoint.turn(later)
        spent = time.thread_time() - begin
        if profile is not None:
            profile.disable()
        if layer.transactions:
            raise RuntimeError(f"{layer.transactions} transactions are left")
        return spent


def _received(phone: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(phone.recv(65535).decode())
        except BlockingIOError:
            return messages


def invite(number: int, nonce: str) -> bytes:
    """The INVITE of a call, with credentials."""
    caller, callee = f"u{number % PHONES:08}", f"u{(number + PHONES // 2) % PHONES:08}"
    uri, count, cnonce = f"sip:{callee}@{DOMAIN}", f"{0x100000 + number:08x}", f"{number:016x}"
    proof = response(
        "MD5",
        ha1("MD5", caller, DOMAIN, PASSWORD),
        ha2("MD5", "INVITE", uri),
        nonce,
        nc=count,
        cnonce=cnonce,
        qop="auth",
    )
    return (
        f"{_begin('INVITE', uri, number, '')}"
        f"From: <sip:{caller}@{DOMAIN}>;tag=f{number:x}\r\nTo: <{uri}>\r\n{_end('INVITE', 1, number)}"
        f"Contact: <sip:{caller}@{CALLER[0]}:{CALLER[1]}>\r\n"
        f'Proxy-Authorization: Digest username="{caller}", realm="{DOMAIN}", nonce="{nonce}", uri="{uri}", '
        f'response="{proof}", algorithm=MD5, cnonce="{cnonce}", qop=auth, nc={count}\r\n'
        f"Content-Type: application/sdp\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    ).encode()


def in_dialog(final: str, method: str) -> bytes:
    """The ACK for a 200, or the BYE after it."""
    number = int(_first(_CALL, final))
    routes = "".join(f"Route: {value}\r\n" for value in reversed(_RECORD_ROUTE.findall(final)))
    caller = f"u{number % PHONES:08}"
    return (
        f"{_begin(method, f'sip:uas@{CALLER[0]}:5999', number, routes)}"
        f"From: <sip:{caller}@{DOMAIN}>;tag=f{number:x}\r\nTo: {_first(_TO, final)}\r\n"
        f"{_end(method, 1 if method == 'ACK' else 2, number)}Content-Length: 0\r\n\r\n"
    ).encode()


def _begin(method: str, uri: str, number: int, routes: str) -> str:
    via = f"SIP/2.0/UDP {CALLER[0]}:{CALLER[1]};rport;branch=z9hG4bK{method[0].lower()}1{number:06x}.1.2a"
    return f"{method} {uri} SIP/2.0\r\nVia: {via}\r\nMax-Forwards: 70\r\n{routes}"


def _end(method: str, cseq: int, number: int) -> str:
    return f"Call-ID: c{number}@callgen\r\nCSeq: {cseq} {method}\r\n"


def answer(request: str, status_line: str) -> bytes:
    """A response of a phone that is called."""
    fields = {name: "".join(lines.findall(request)) for name, lines in _COPIED.items()}
    to, more = fields["To"], ""
    if request.startswith("INVITE "):
        to, more = to.replace("\r\n", ";tag=uas\r\n"), f"Contact: <sip:uas@{CALLER[0]}:5999>\r\n"
    head = f"{fields['Via']}{fields['Record-Route']}{fields['From']}{to}{fields['Call-ID']}{fields['CSeq']}{more}"
    return f"{status_line}\r\n{head}Content-Length: 0\r\n\r\n".encode()


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    assert found is not None
    return found[1]


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.calls", description="Measure what a call costs a node.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--profile", action="store_true", help="print where the time goes; it costs time itself")
    options = parser.parse_args()
    least, each = inf, [inf] * len(STEPS)
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        lone = Lone(Path(directory))
        for cseq in (1, 2):  # bindings are made, caches are filled
            list(lone.round(cseq))
        callers = Callers(lone)
        for _ in range(5):
            callers.round()
        profile = cProfile.Profile() if options.profile else None
        for _ in range(options.rounds):
            spent = callers.round(profile)
            least, each = min(least, sum(spent)), list(map(min, each, spent))
        callers.stop()
        lone.stop()
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)
        return
    steps = ", ".join(f"{name} {seconds / CALLS * 1e6:.0f}" for name, seconds in zip(STEPS, each, strict=True))
    print(f"a call: {least / CALLS * 1e6:.0f} µs ({steps})")


if __name__ == "__main__":
    main()
