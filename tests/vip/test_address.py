"""The modes that need no guard."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from sipha.errors import NotClaimed
from sipha.vip.address import IVirtualAddress, LoopbackAddress
from sipha.vip.external import AGAIN, ExternalAddress
from sipha.vip.hook import HookAddress
from sipha.vip.netlink import NetlinkAddress
from sipha.vip.placement import Placement
from tests.vip.kernel import FakeKernel
from tests.vip.test_netlink import outcome

IPV4, IPV6 = Placement("192.0.2.10", "", 32), Placement("2001:db8::10", "", 128)


def external(
    kernel: FakeKernel, moved: Callable[[str], None] = lambda _: None
) -> tuple[ExternalAddress, list[str], Any]:
    lost: list[str] = []
    memory: Any = MemoryReactorClock()
    address = ExternalAddress(memory, (IPV4, IPV6), lost.append, kernel.addresses, moved)
    address.start()
    return address, lost, memory


def test_modes_are_what_the_service_asks_for() -> None:
    memory = MemoryReactorClock()
    lost: list[str] = []
    for address in (
        LoopbackAddress(),
        external(FakeKernel())[0],
        HookAddress(memory, (IPV4,), "/bin/true", 1.0),
        NetlinkAddress(memory, (IPV4,), Path("/nowhere"), lost.append, lost.append),
    ):
        assert verifyObject(IVirtualAddress, address)
        assert not address.held


def test_loopback_holds_what_is_claimed() -> None:
    address = LoopbackAddress()
    assert outcome(address.claim(b"", (), 0.0)) == [None]
    assert address.held
    assert outcome(address.release()) == [None]
    assert not address.held


def test_external_claim_waits_until_all_addresses_are_here() -> None:
    kernel = FakeKernel()
    address, lost, _ = external(kernel)
    claimed = outcome(address.claim(b"", (), 0.0))
    kernel.addresses.here.add(IPV4)
    address.doRead()
    assert claimed == []
    assert list(address.alarms()) == [
        "this node leads, but 2001:db8::10 isn't here, nor at any node that could lead in its place"
    ]
    kernel.addresses.here.add(IPV6)
    address.doRead()
    assert claimed == [None]
    assert address.held
    assert not list(address.alarms())
    kernel.addresses.here.discard(IPV4)
    address.doRead()
    assert lost == ["192.0.2.10 was taken away"]
    assert not address.held
    assert not kernel.done


def test_external_says_where_the_addresses_are_not_whether_they_are_claimed_or_not() -> None:
    kernel, moved = FakeKernel(), list[str]()
    address, _, _ = external(kernel, moved.append)
    kernel.addresses.here |= {IPV4, IPV6}
    address.doRead()
    address.claim(b"", (), 0.0)
    kernel.addresses.here.discard(IPV6)
    address.doRead()
    assert list(dict.fromkeys(moved)) == ["192.0.2.10", "", "2001:db8::10"]


def test_external_looks_again_when_the_kernel_did_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    kernel.addresses.here |= {IPV4, IPV6}
    address, lost, memory = external(kernel)
    address.claim(b"", (), 0.0)

    def missing(_: object) -> list[Placement]:
        raise InterruptedError(errno.EINTR, "the addresses change all the time")

    kernel.addresses.here.discard(IPV4)
    with monkeypatch.context() as patch:
        patch.setattr(kernel.addresses, "missing", missing)
        address.doRead()
        memory.advance(AGAIN)
        assert not lost
        assert not list(address.alarms())
    memory.advance(AGAIN)
    assert lost == ["192.0.2.10 was taken away"]
    address.claim(b"", (), 0.0)
    kernel.addresses.here.add(IPV4)
    monkeypatch.setattr(kernel.addresses, "missing", missing)
    address.doRead()
    assert "192.0.2.10 isn't here" in next(address.alarms()), "as it was last seen"
    address.stop()
    memory.advance(AGAIN)


def test_external_release_leaves_the_addresses() -> None:
    kernel = FakeKernel()
    address, lost, memory = external(kernel)
    waiting = outcome(address.claim(b"", (), 0.0))
    assert outcome(address.claim(b"", (), 0.0)) == ["an earlier claim has not ended yet"]
    assert outcome(address.release()) == [None]
    assert waiting == ["it was released"]
    kernel.addresses.here |= {IPV4, IPV6}
    assert outcome(address.claim(b"", (), 0.0)) == [None]
    assert outcome(address.stop()) == [None]
    assert kernel.addresses.here == {IPV4, IPV6}
    assert not lost
    assert not memory.readers


class TestHook(unittest.TestCase):
    """A real command on the real reactor."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.said = self.directory / "said"

    def hook(self, script: str, deadline: float = 10.0) -> HookAddress:
        command = self.directory / "hook"
        command.write_text(f'#!/bin/sh\necho "$@" >>{self.said.absolute()}\n{script}\n')
        command.chmod(0o755)
        return HookAddress(reactor, (IPV4, IPV6), str(command.absolute()), deadline)

    @inlineCallbacks
    def test_hook_is_run_with_the_addresses(self) -> Any:
        address = self.hook("echo done")
        yield address.claim(b"", (), 0.0)
        assert address.held
        yield address.release()
        assert not address.held
        assert self.said.read_text() == "claim 192.0.2.10 2001:db8::10\nrelease 192.0.2.10 2001:db8::10\n"
        yield address.stop()
        assert len(self.said.read_text().splitlines()) == 2, "there is nothing left to release"

    @inlineCallbacks
    def test_hook_that_fails_fails_the_claim(self) -> Any:
        address = self.hook("exit 3")
        with pytest.raises(NotClaimed, match="exit code 3"):
            yield address.claim(b"", (), 0.0)
        assert not address.held
        assert "exit code 3" in next(address.alarms())
        with pytest.raises(NotClaimed):
            yield address.claim(b"", (), 0.0)

    @inlineCallbacks
    def test_hook_is_killed_at_its_deadline_with_all_that_it_started(self) -> Any:
        address = self.hook(f"(sleep 2; echo late >>{self.said.absolute()}) & sleep 30", deadline=0.5)
        begun = time.monotonic()
        with pytest.raises(NotClaimed, match=r"killed after 0\.5 s"):
            yield address.claim(b"", (), 0.0)
        assert time.monotonic() - begun < 20
        yield deferLater(reactor, 2.5)
        assert "late" not in self.said.read_text()

    @inlineCallbacks
    def test_release_waits_for_the_claim_and_is_tried_again(self) -> Any:
        address = self.hook('test "$1" = claim && exec sleep 0.3; test $(wc -l <$(dirname "$0")/said) -ge 3')
        claimed = address.claim(b"", (), 0.0)
        released: Deferred[None] = address.release()
        with pytest.raises(NotClaimed, match="it was released"):
            yield claimed
        yield released
        assert [line.split()[0] for line in self.said.read_text().splitlines()] == ["claim", "release", "release"]
        assert not list(address.alarms())
