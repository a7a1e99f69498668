"""What a worker does for phones: it takes their datagrams apart, answers REGISTERs, proxies, and passes on all else.

A REGISTER that isn't as most phones write it (`sipha.registrar.plain`), and what `Calls` leaves, goes to the daemon as
it came. So do all REGISTERs while somebody looks on at the messages: what is done with them is said in one place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from ipaddress import ip_network
from typing import Any

from twisted.logger import Logger

from sipha.auth.authenticator import Authenticator
from sipha.auth.authenticator import Ceded as CededNonce
from sipha.auth.domain import Domains
from sipha.auth.window import NonceWindow
from sipha.errors import SipError
from sipha.nat import stun
from sipha.nat.detection import make_detection, make_force_rport
from sipha.proxy.admission import Peers, ProxySettings
from sipha.proxy.target import TargetSet
from sipha.registrar.record import RegistrarSettings
from sipha.registrar.registrar import Registrar
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.overload import PATIENCE, Overload, Tally, Verdict
from sipha.sip.parser import parse
from sipha.sip.token import Tokens
from sipha.state.interfaces import ICredentials
from sipha.transport.connection import PING, PONG
from sipha.transport.endpoint import LONGEST_KEEPALIVE, TOGETHER, is_keepalive, message_of
from sipha.transport.udp import UdpSocket
from sipha.workers.calls import Calls
from sipha.workers.mailbox import Letter, Post
from sipha.workers.mark import seat_of
from sipha.workers.messages import (
    Answers,
    Ceded,
    Datagrams,
    Failed,
    Questions,
    Registers,
    Report,
    Seen,
    Settings,
    Shadowed,
    Start,
    Word,
    refused,
)
from sipha.workers.registry import DistantRegistry
from sipha.workers.table import View


class Front:
    """Serves phones by its `start` until the lease ends; `clock` is CLOCK_BOOTTIME, `say` tells the daemon.

    `flush` sends at once what was said. `lookups` is the file of a `sipha.workers.table`; `post` goes to other workers.
    `version` is that of the accounts in `credentials`. Somebody who is `watching` sees all messages.
    """

    log = Logger()

    def __init__(  # noqa: PLR0917  the parts of one thing
        self,
        reactor: Any,
        start: Start,
        credentials: ICredentials,
        tokens: Callable[[], Tokens | None],
        say: Callable[[Word], None],
        flush: Callable[[], None],
        clock: Callable[[], float],
        lookups: int,
        post: Post,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.version = 0
        self.watching = False
        self._until = self._ahead = 0.0
        self._sockets: Sequence[UdpSocket] = ()
        self._say = say
        self._flush = flush
        self._clock = clock
        self._term = start.term
        self._post = post
        # What is in a nonce that was made here.
        self._made_here = re.compile(rb"%08x[0-9a-f]{8}%03x" % (start.term & 0xFFFFFFFF, start.maker))
        self._indexes = {address: index for index, address in enumerate(start.listeners)}
        self._overload = Overload()
        self._turned_away = 0
        self._counted: Counter[str] = Counter()
        self._shed = {priority: Tally() for priority in PATIENCE}
        self._behind = 0
        self._domains = Domains(start.settings.domains, start.settings.addresses)
        window = NonceWindow(maker=start.maker, since=start.since)
        self._authenticator = Authenticator(credentials, tokens, self._domains, window=window)
        self.registry = DistantRegistry(self._authenticator)
        self._registrar = Registrar(
            self.registry,
            credentials,
            self._authenticator,
            self._domains,
            cluster_time=self._cluster_time,
            term=lambda: start.term,
            send=self._send,
            overload=self._overload,
            clock=clock,
        )
        self.calls = Calls(
            reactor,
            start,
            credentials,
            self._authenticator,
            tokens,
            self._domains,
            View(lookups, lambda: self.version, self._cluster_time),
            lease_until=lambda: self._until,
            clock=clock,
            cluster_time=self._cluster_time,
            share=self._share,
            pass_on=lambda data, flow: self._pass_on([(data, flow)]),
            hand_on=lambda mark, data, flow: not self.watching and post.put(seat_of(mark), data, flow),
        )
        self.adopt(start.settings)

    def use(self, sockets: Sequence[UdpSocket]) -> None:
        """Answer by these sockets, those of the listeners in order."""
        self._sockets = sockets
        self.calls.use(sockets)

    def adopt(self, settings: Settings) -> None:
        """Go by these settings from the next datagram on."""
        registrar = settings.registrar
        edges = tuple(map(ip_network, registrar.edges))
        peers = tuple(map(ip_network, settings.peers))
        trusted, is_behind_nat = Peers((*edges, *peers)), make_detection(settings.detect)
        self._domains.become(settings.domains, settings.addresses)
        self._authenticator.let_nonces_live(settings.nonce_lifetime)
        self._overload.adopt(lambda flow: flow.remote[0] in trusted, settings.emergency_numbers)
        self._registrar.adopt(
            RegistrarSettings(
                policy=registrar.policy,
                min_expires_policy=registrar.min_expires_policy,
                expires_jitter=registrar.expires_jitter,
                edges=edges,
            ),
            is_behind_nat,
        )
        self.calls.adopt(
            ProxySettings(peers, settings.allow_inbound, settings.max_breadth),
            make_force_rport(is_behind_nat, trusted.__contains__),
        )

    def watch(self, *, watched: bool) -> None:
        """Let who looks on see all messages from now on, or none."""
        self.watching = watched
        self.calls.endpoint.taps[:] = [self._tell] if watched else []

    def lease(self, until: float, *, ahead: float | None = None) -> None:
        """Serve until then, and no longer; cluster time is `ahead` of the clock."""
        self._until = until
        if ahead is not None:
            self._ahead = ahead

    @property
    def leased(self) -> bool:
        """True while phones may be heard and answered."""
        return self._clock() < self._until

    def datagrams_received(self, datagrams: list[tuple[bytes, Flow]], age: float, fill: float) -> None:
        """Act on what was read together; see UdpSocket."""
        now = self._clock()
        if now >= self._until:
            self.counters["withheld"] += len(datagrams)
            return
        overload = self._overload
        overloaded = overload.waited(age, fill)
        passed, late, registers = [], list[tuple[bytes, Flow]](), list[tuple[bytes, Flow]]()
        if overloaded:
            datagrams, registers = overload.sift(datagrams, now)
        for came, flow in datagrams:
            data = message_of(came)
            if (len(data) <= LONGEST_KEEPALIVE and is_keepalive(data)) or stun.is_stun(data):
                self._keep_alive(data, flow)
                continue
            if overloaded and (verdict := overload.judge(data, flow, now)) is not Verdict.SERVED:
                if verdict is Verdict.REFUSED and not self._see(data, flow, taken=self.calls.is_ours(data, flow, now)):
                    late.append((data, flow))
            elif not self._is_taken(data, flow, now):
                passed.append((data, flow))
        late += self._turn_away(registers, now)
        handed = self.registry.take()
        if handed:
            self._say(Registers(self.version, now, handed))
        passed += self._post.send()
        if passed:
            self._pass_on(passed)
        if late:
            self._say(
                Datagrams(
                    [(message_of(data), self._indexes[flow.local], *flow.remote) for data, flow in late], late=True
                )
            )
        self._turn(now)

    def letter_received(self, letter: Letter) -> None:
        """Act on what another worker takes for ours."""
        now = self._clock()
        if now < self._until:
            known = [(data, flow) for data, flow in letter if flow.local in self._indexes]  # others are yet to come
            passed = [
                (data, flow)
                for data, flow in known
                if not self._see(data, flow, taken=self._is_handed(data, flow, now))
            ]
            if passed:  # it was for who had this seat before
                self._pass_on(passed)
            self._turn(now)

    def datagrams_handed(self, datagrams: list[tuple[bytes, int, str, int]]) -> None:
        """Act on what belongs to calls of ours, and was read elsewhere."""
        now = self._clock()
        if now < self._until:
            for data, index, host, port in datagrams:
                self._is_handed(data, self._flow(index, host, port), now)
            self._turn(now)

    def answered(self, answers: Answers) -> None:
        """Go on with requests, as the daemon says."""
        now, calls = self._clock(), self.calls
        for tag, groups in answers.found:
            self._found(tag, list(map(list, groups)), now)
        for tag, error in answers.refused:
            self._found(tag, refused(error), now)
        for tag in answers.challenged:
            self._found(tag, None, now)
        for tag in answers.elsewhere:
            calls.left(tag, now)
        self._turn(now)

    def flows_died(self, flows: Iterable[tuple[int, str, int]]) -> None:
        """Take note of flows that are dead, whoever has found that out."""
        self.calls.endpoint.flows_failed([self._flow(*flow) for flow in flows])

    def flows_failed(self, flows: Iterable[Flow]) -> None:
        """Tell the daemon which flows are dead."""
        self._say(Failed([(self._indexes[flow.local], *flow.remote) for flow in flows]))

    def report(self) -> Report:
        """What was done since the last report."""
        counted, shed, behind = self._counted, self._shed, self._behind
        overload, registrar = self._overload, self._registrar
        rooms: dict[str, Mapping[Any, int]] = {
            "registrar": asdict(registrar.counters),
            "responses": registrar.responses,
            "transport": self.counters,
            **self.calls.counts(),
            "turned away": {"REGISTER": self._turned_away},
        }
        self._counted = Counter({f"{room}/{name}": n for room, counts in rooms.items() for name, n in counts.items()})
        self._shed = {priority: replace(tally) for priority, tally in overload.tallies.items()}
        self._behind = overload.behind
        return Report(
            self.version,
            {
                name: self._counted[name] - counted[name]
                for name in self._counted
                if self._counted[name] != counted[name]
            },
            self.calls.transactions,
            self.calls.take_latencies(),
            {
                priority: Tally(0, tally.refused - shed[priority].refused, tally.ignored - shed[priority].ignored)
                for priority, tally in self._shed.items()
                if tally != shed[priority]
            },
            self._behind - behind,
            overload.wait,
        )

    def _keep_alive(self, data: bytes, flow: Flow) -> None:
        """Answer what keeps a NAT open, if that asks for an answer."""
        if len(data) > LONGEST_KEEPALIVE:
            answer = stun.answer(data, flow.remote)
            if answer is not None:
                self._send([(answer, flow)])
            return
        self.counters["udp-keepalive"] += 1
        if data == PING:
            self._send([(PONG, flow)])

    def _is_taken(self, data: bytes, flow: Flow, now: float) -> bool:
        try:
            if data.startswith(b"REGISTER "):
                return not self.watching and self._registrar.datagram_received(data, flow, now)
            asked = len(self.calls.questions)
            taken = self.calls.datagram_received(data, flow, now)
            # What the daemon is asked for is seen when it has answered: perhaps it wants the request itself.
            return self._see(data, flow, taken=taken) if len(self.calls.questions) == asked else taken
        except Exception:  # noqa: BLE001 - the daemon may know what to do with it
            self.log.failure("a mistake of ours in reading a datagram")
            return False

    def _is_handed(self, data: bytes, flow: Flow, now: float) -> bool:
        try:
            return self.calls.datagram_handed(data, flow, now)
        except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
            self.log.failure("a mistake of ours in reading a datagram")
            return True

    def _pass_on(self, passed: Letter) -> None:
        """Let the daemon act on datagrams, and use up what their credentials do."""
        ceded = [each for data, _ in passed if self._made_here.search(data) for each in self._cede(data)]
        if ceded:
            self._say(Ceded(ceded))
        self._say(Datagrams([(data, self._indexes[flow.local], *flow.remote) for data, flow in passed]))

    def _cede(self, data: bytes) -> list[CededNonce]:
        try:
            message = parse(data)
            if isinstance(message, Request):
                return self._authenticator.cede(message, self._cluster_time(), self._term)
        except SipError:
            pass  # nobody accepts it
        except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
            self.log.failure("a mistake of ours in reading credentials")
        return []

    def _cluster_time(self) -> float:
        return self._clock() + self._ahead

    def _turn_away(self, registers: list[tuple[bytes, Flow]], now: float) -> list[tuple[bytes, Flow]]:
        """Answer REGISTERs that are refused for overload; return those that can't be at a glance."""
        if self.watching or not registers:
            return registers
        answers = self._overload.refusals(registers, now)
        told = [(answer, flow) for answer, (_, flow) in zip(answers, registers, strict=True) if answer is not None]
        self._turned_away += len(told)
        self._send(told, TOGETHER)
        return [register for answer, register in zip(answers, registers, strict=True) if answer is None]

    def _flow(self, index: int, host: str, port: int) -> Flow:
        return Flow("UDP", self._sockets[index].address, (host, port))

    def _found(self, tag: int, targets: TargetSet | None, now: float) -> None:
        try:
            came = self.calls.found(tag, targets, now)
        except Exception:  # noqa: BLE001 - our mistake about one request must not stop the others
            self.log.failure("a mistake of ours in forwarding a request")
            return
        if came is not None and self.watching:
            self._tell(*came, sent=False)

    def _turn(self, now: float) -> None:
        """Ask the daemon what is to be asked, and send what is to be sent."""
        calls = self.calls
        if calls.questions:
            questions, calls.questions = calls.questions, []
            self._say(Questions(self.version, questions))
        calls.turn(now)

    def _share(self, records: list[bytes]) -> None:
        """Have the other nodes know of our calls before anything is sent."""
        self._say(Shadowed(records))
        self._flush()

    def _see(self, data: bytes, flow: Flow, *, taken: bool) -> bool:
        if taken and self.watching:
            self._tell(data, flow, sent=False)
        return taken

    def _tell(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        self._say(Seen([(data, self._indexes[flow.local], *flow.remote, sent)]))

    def _send(self, messages: list[tuple[bytes, Flow]], together: int = 1) -> None:
        """Send, so many at once, while we still may; what can't be sent is what an ICMP error will tell of."""
        place = 0
        while place < len(messages):
            udp = self._sockets[self._indexes[messages[place][1].local]]
            place = udp.send_many(messages, place, self._until, self._clock, together)
            if place == len(messages):
                break
            data, flow = messages[place]
            place += 1
            if self._clock() < self._until:
                self._sockets[self._indexes[flow.local]].send(data, flow.remote)
            else:
                self.counters["withheld"] += 1
