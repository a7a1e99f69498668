"""A real guard in a LAN of network namespaces; what the node has sent decides."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sipha.vip.clock import boottime as now
from sipha.vip.gate import OPENING, Gate, Lapsed, Nft
from sipha.vip.messages import Alarms, decode_report
from sipha.vip.placement import Placement
from tests.vip.conftest import IPV4, IPV6, Site
from tests.vip.lan import Host, wait_for

pytestmark = pytest.mark.system

LATE = 0.05
"""Seconds after a deadline: the kernel's clock ticks, and the oracle's thread has to be scheduled."""


def assert_silent_after(site: Site, deadline: float) -> None:
    """Check that both addresses were in use before the deadline, and that nothing came from them afterwards."""
    for address, times in site.comes().items():
        assert times, f"nothing came from {address} at all"
        assert max(times) < deadline + LATE, f"{address}: {max(times) - deadline:.3f} s late"


def test_guard_answers_for_addresses_only_while_claimed(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    assert not site.phone.resolves(IPV4)
    daemon.claim()
    for address in (IPV4, IPV6):
        assert site.phone.resolves(address)
        assert site.phone.neighbour(address) == site.node.hardware()
    time.sleep(1.0)
    assert site.phone.resolves(IPV4), "renewals keep it"
    daemon.say("release")
    released = daemon.hear("ended")
    assert not released["reason"]
    assert site.gone()
    assert not site.phone.resolves(IPV4)
    assert not site.phone.resolves(IPV6)
    assert max(max(times) for times in site.comes().values()) <= released["at"]
    assert not site.words, "an orderly release has no last word"


def test_guard_speaks_after_a_killed_daemons_addresses_are_gone(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    site.emit()
    site.ask()
    daemon.claim(lease=5.0)
    time.sleep(0.3)
    killed = now()
    daemon.signal(signal.SIGKILL)
    assert wait_for(lambda: len(site.words) == 3)
    assert {word for _, word in site.words} == {b"word 1"}
    spoken, _ = site.words[0]
    assert spoken - killed < 0.3
    assert site.gone()
    time.sleep(0.3)
    for times in site.comes().values():
        assert times
        assert max(times) < spoken


def test_guard_takes_no_claim_whose_last_word_was_spoken(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    daemon.signal(signal.SIGKILL)
    assert wait_for(lambda: site.words)
    restarted = site.start_daemon()
    restarted.say("claim", 1, IPV4)  # its first word, too
    assert restarted.hear("ended")["reason"].startswith("its last word has been spoken")
    restarted.claim(IPV4)


def test_guard_ends_the_claim_of_a_frozen_daemon(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    site.emit()
    site.ask()
    daemon.claim()
    time.sleep(0.3)
    daemon.signal(signal.SIGSTOP)
    frozen = now()
    assert wait_for(lambda: site.words)
    assert site.words[0][0] - frozen < 0.3 + 0.2
    assert site.gone()
    daemon.signal(signal.SIGCONT)
    assert daemon.hear("ended")["reason"] == "it was not renewed in time"
    assert_silent_after(site, site.words[0][0])


def test_kernel_shuts_the_gate_of_a_frozen_guard(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    site.emit()
    site.ask()
    daemon.claim()
    time.sleep(0.3)
    guard.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    deadline = daemon.deadline
    time.sleep(1.0)  # meanwhile the daemon goes on renewing
    assert site.node.has(IPV4)
    assert_silent_after(site, deadline)
    assert not site.words
    guard.send_signal(signal.SIGCONT)
    assert daemon.hear("ended")["reason"] == "it was not renewed in time"
    assert site.gone(), "a thawed guard takes away, and brings nothing back"
    assert wait_for(lambda: site.words)
    time.sleep(0.2)
    assert_silent_after(site, deadline)


def test_kernel_shuts_the_gate_when_daemon_and_guard_are_frozen(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    site.emit()
    site.ask()
    daemon.claim()
    time.sleep(0.3)
    for process in (daemon.process, guard):
        process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    deadline = daemon.deadline
    time.sleep(0.6)
    assert_silent_after(site, deadline + 0.04)  # a renewal may have been answered that nobody has read
    daemon.signal(signal.SIGCONT)
    time.sleep(0.2)
    guard.send_signal(signal.SIGCONT)
    daemon.hear("ended")
    assert site.gone()
    assert_silent_after(site, deadline + 0.04)


@pytest.mark.long
def test_thawed_guard_does_not_bring_back_what_the_kernel_has_removed(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    guard.send_signal(signal.SIGSTOP)
    assert wait_for(site.gone, 40.0), "the kernel removes what nobody refreshes"
    thawed = now()
    guard.send_signal(signal.SIGCONT)
    daemon.hear("ended")
    assert not any(site.comes(thawed).values())
    assert site.gone()


def test_killed_guard_leaves_a_gate_that_shuts_and_an_address_that_the_next_one_removes(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    site.emit()
    site.ask()
    daemon.claim()
    time.sleep(0.2)
    guard.kill()
    guard.wait()
    deadline = daemon.deadline
    time.sleep(0.5)
    assert_silent_after(site, deadline)
    assert site.node.has(IPV4)
    site.start_guard()
    assert site.gone()
    assert_silent_after(site, deadline)
    assert not site.words


def test_guard_removes_what_is_left_over_before_it_listens(site: Site) -> None:
    site.node.ip("addr", "add", f"{IPV4}/24", "dev", "lo")
    site.node.ip("addr", "add", f"{IPV6}/128", "dev", "e0", "nodad")
    site.start_guard()
    assert site.gone()
    assert site.node.has(site.node.ipv4)


def test_stopped_guard_takes_the_addresses_with_it(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    guard.terminate()
    assert daemon.hear("ended")["reason"] == "the guard was stopped"
    assert guard.wait(20) == 0
    assert site.gone()
    time.sleep(0.1)
    assert not site.words


def test_guard_of_a_parent_ends_with_it_after_the_last_word(site: Site) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    guard = site.start_guard("--parent", str(parent.pid))
    daemon = site.start_daemon()
    daemon.claim(lease=5.0)
    parent.kill()
    parent.wait()
    assert guard.wait(20) == 0
    assert site.gone()
    assert len(site.words) == 3


def test_second_guard_is_refused(site: Site) -> None:
    site.start_guard()
    assert site.run_guard().wait(20) == 78


def test_what_a_killed_guard_has_left_is_taken_away_without_another(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    guard.kill()
    guard.wait()
    assert site.node.has(IPV4)
    assert site.node.has(IPV6)
    assert site.run_guard("--remove").wait(20) == 0
    assert site.gone()
    assert "@lease6 drop" in site.node.gate(), "the gate stays, shut"


def test_nothing_is_taken_away_from_a_guard_that_runs(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    assert site.run_guard("--remove").wait(20) == 78
    assert site.node.has(IPV4)
    assert site.phone.resolves(IPV4)


def test_gate_is_taken_down_for_good(site: Site) -> None:
    guard = site.start_guard()
    guard.kill()
    guard.wait()
    assert "sipha" in site.node.gate()
    assert site.run_guard("--dismantle").wait(20) == 0
    assert "sipha" not in site.node.gate()
    assert site.run_guard("--dismantle").wait(20) == 0, "there is nothing to take down"


def test_systemd_hears_of_a_guard_while_it_turns(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        guard = site.run_guard()
        site.guard = guard
        assert systemd.recv(100) == b"READY=1"
        assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        guard.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        systemd.setblocking(False)
        while select.select([systemd], [], [], 0)[0]:
            systemd.recv(100)
        time.sleep(0.6)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        guard.send_signal(signal.SIGCONT)
        systemd.settimeout(20)
        assert systemd.recv(100) == b"WATCHDOG=1"
        guard.terminate()
        while (said := systemd.recv(100)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"


def test_guard_of_a_parent_doesnt_speak_for_it(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    parent = subprocess.Popen(["sleep", "60"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        site.start_guard("--parent", str(parent.pid))
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    parent.kill()
    parent.wait()


def test_guard_refuses_a_configuration_that_others_can_change(site: Site) -> None:
    site.configuration.chmod(0o666)
    assert site.run_guard().wait(20) == 78


def test_guard_refuses_an_address_that_it_was_not_given(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.say("claim", 1, "192.0.2.77")
    assert daemon.hear("ended")["reason"].startswith("192.0.2.77 is not among")
    assert not site.node.has("192.0.2.77")


def test_guard_refuses_other_users_and_a_second_daemon(site: Site) -> None:
    site.start_guard()
    for directory in (site.socket.parent, *site.socket.parent.parents[:3]):
        directory.chmod(0o755)
    stranger = f"""
import os, socket
os.setuid(65534)
guard = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
guard.settimeout(5)
guard.connect({str(site.socket)!r})
print(guard.recv(100))
"""
    heard = subprocess.run([sys.executable, "-c", stranger], capture_output=True, text=True, check=True).stdout
    assert heard.strip() == "b''"
    daemon = site.start_daemon()
    daemon.claim()
    assert site.start_daemon().process.wait(20) == 0
    daemon.say("release")
    assert not daemon.hear("ended")["reason"]


def test_guard_says_at_once_whom_it_serves(site: Site) -> None:
    site.start_guard()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.connect(str(site.socket))
        first.settimeout(5)
        assert decode_report(first.recv(1000)) == Alarms(())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
            second.connect(str(site.socket))
            second.settimeout(5)
            assert not second.recv(1000)


def test_guard_announces_on_schedule(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    claimed = daemon.claim()["at"]
    time.sleep(2.3)
    literal = socket.inet_aton(IPV4)
    requests: list[float] = []
    replies: list[float] = []
    advertisements: list[float] = []
    for frame in site.sent(IPV4):
        if frame.arp and frame.data[38:42] == literal:
            assert frame.data[:6] == b"\xff" * 6
            (requests if frame.data[21] == 1 else replies).append(frame.time - claimed)
    for frame in site.sent(IPV6):
        if frame.data[54] == 136 and frame.data[:2] == b"\x33\x33":  # the others answer who asks
            assert frame.data[21] == 255
            assert frame.data[58] & 0x20, "the override flag"
            advertisements.append(frame.time - claimed)
    for times in (requests, replies, advertisements):
        assert times == pytest.approx([0, 0.2, 0.5, 1, 2], abs=0.1)


def test_neighbour_learns_the_new_holder_from_an_announcement(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    for address in (IPV4, IPV6):
        site.phone.ip("neigh", "replace", address, "lladdr", "02:00:00:00:00:77", "dev", "e0", "nud", "stale")
    daemon.claim()
    ours = site.node.hardware()
    assert wait_for(lambda: all(site.phone.neighbour(address) == ours for address in (IPV4, IPV6)), 1.0)


def announce(host: Host) -> float:
    """Have the host say that the IPv4 address is its own."""

    def send() -> float:
        hardware = bytes.fromhex(host.hardware().replace(":", ""))
        ours = socket.inet_aton(IPV4)
        packet = b"\x00\x01\x08\x00\x06\x04\x00\x01" + hardware + ours + bytes(6) + ours
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
            said = now()
            link.sendto(packet, ("e0", 0x0806, 0, 0, b"\xff" * 6))
        return said

    return host.inside(send)


def test_guard_contradicts_whoever_claims_an_address_at_once(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    time.sleep(0.7)  # between two announcements of the schedule
    said = announce(site.phone)
    assert wait_for(lambda: site.comes(said)[IPV4], 0.2)
    assert site.phone.resolves(IPV4)
    assert wait_for(lambda: any(f"{site.phone.hardware()} on e0 has it, too" in text for text in daemon.alarms))


def test_guard_takes_no_address_that_is_in_use(site: Site) -> None:
    site.phone.ip("addr", "add", f"{IPV4}/32", "dev", "e0")
    site.start_guard()
    daemon = site.start_daemon()
    begun = now()
    daemon.say("claim", 1, IPV4, IPV6)
    try:
        assert wait_for(lambda: any("in use" in text for text in daemon.alarms))
        refused = daemon.hear("ended")
        assert refused["reason"] == f"{IPV4} is in use: {site.phone.hardware()} on e0 answers for it"
        assert 1.9 < refused["at"] - begun < 3
        assert not any(site.comes().values())
    finally:
        site.phone.ip("addr", "del", f"{IPV4}/32", "dev", "e0")


@pytest.mark.parametrize(("address", "prefix"), [(IPV4, 32), (IPV6, 128)])
def test_guard_waits_until_nobody_answers_any_more(site: Site, address: str, prefix: int) -> None:
    site.phone.ip("addr", "add", f"{address}/{prefix}", "dev", "e0", *(["nodad"] if ":" in address else []))
    try:
        site.start_guard()
        daemon = site.start_daemon()
        daemon.say("claim", 1, IPV4, IPV6)
        assert wait_for(lambda: daemon.alarms)
        assert site.gone()
    finally:
        site.phone.ip("addr", "del", f"{address}/{prefix}", "dev", "e0")
    daemon.hear("claimed", 1.0)


def test_kernel_drops_what_comes_from_an_absent_address(site: Site) -> None:
    site.start_guard()
    site.emit()
    time.sleep(0.3)
    assert not any(site.comes().values())
    site.node.inside(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
    assert wait_for(lambda: site.comes()[IPV6], 1.0), "IPv6 lets it out where there is no gate"


@pytest.mark.parametrize(("address", "absent"), [(IPV4, "192.0.2.99"), (IPV6, "2001:db8::99")])
def test_kernel_drops_what_waited_for_a_neighbour_when_the_gate_was_shut(site: Site, address: str, absent: str) -> None:
    """As on a node that was cut off from its phones: what it had to say must not come when it is connected again."""

    def send() -> None:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as phone:
            phone.bind((address, 0))
            for _ in range(3):
                phone.sendto(b"late", (absent, 9))

    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    site.node.inside(send)
    for process in (daemon.process, guard):
        process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    deadline = daemon.deadline
    time.sleep(0.5)
    site.phone.ip("addr", "add", absent, "dev", "e0", *(("nodad",) if ":" in address else ()))
    assert site.node.reaches(absent, 2.5), "what the node says on its own account makes the neighbour known"
    time.sleep(0.1)
    assert_silent_after(site, deadline + 0.04)
    daemon.signal(signal.SIGCONT)
    guard.send_signal(signal.SIGCONT)


def test_kernel_opens_no_gate_that_is_opened_too_late(site: Site) -> None:
    def open_late() -> None:
        nft = Nft()

        def run_late(commands: str) -> None:
            if commands.startswith("delete element"):
                time.sleep(OPENING + LATE)
            nft.run(commands)

        gate = Gate((Placement(IPV4, "e0", 32), Placement(IPV6, "e0", 128)), now, run_late)
        gate.install()
        with pytest.raises(Lapsed):
            gate.open((IPV4, IPV6), now() + 5)

    site.node.inside(open_late)
    site.begun = now()
    site.emit()
    time.sleep(0.1)
    assert site.comes() == {IPV4: [], IPV6: []}


def test_guard_puts_a_gate_back_that_someone_has_removed(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    site.node.inside(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
    assert wait_for(lambda: any("gate" in text for text in daemon.alarms), 1.0)
    assert "@lease6 drop" in site.node.gate()
    guard.send_signal(signal.SIGSTOP)
    site.emit()
    time.sleep(0.5)
    assert not any(site.comes(daemon.deadline + LATE).values())


def test_claim_ends_when_someone_removes_an_address(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    site.node.ip("addr", "del", f"{IPV4}/32", "dev", "e0")
    assert daemon.hear("ended")["reason"] == f"someone has removed {IPV4}%e0"
    assert site.gone()
    assert not site.words


def test_claim_of_an_interface_that_is_not_there_fails(site: Site) -> None:
    site.configuration.write_text(site.configuration.read_text().replace(f"{IPV4}%e0", f"{IPV4}%e7"))
    site.start_guard()
    daemon = site.start_daemon()
    daemon.say("claim", 1, IPV4, IPV6)
    assert daemon.hear("ended")["reason"].startswith("e7: ")
    assert site.gone()


def test_claim_outlives_an_interface_that_is_switched_off_and_on(site: Site) -> None:
    guard = site.start_guard()
    daemon = site.start_daemon()
    daemon.claim(IPV4)
    try:
        site.node.ip("link", "set", "e0", "down")
        time.sleep(0.4)
        assert guard.poll() is None
    finally:
        site.node.ip("link", "set", "e0", "up")
        site.node.ip("addr", "replace", f"{site.node.ipv6}/64", "dev", "e0", "nodad")
    assert site.node.has(IPV4)
    assert wait_for(lambda: site.phone.resolves(IPV4))
    daemon.say("release")
    assert not daemon.hear("ended")["reason"]


def test_second_interface_in_the_lan_does_not_answer(site: Site) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    site.node.plug(site.network, "e1")
    site.node.ip("addr", "add", "192.0.2.101/24", "dev", "e1")
    try:
        assert wait_for(lambda: site.phone.resolves("192.0.2.101"))
        daemon.claim()
        since = now()
        for _ in range(10):
            assert site.phone.resolves(IPV4)
        answers = {
            frame.data[22:28].hex(":")
            for frame in site.phone.received
            if frame.time > since and frame.arp and frame.comes_from(IPV4)
        }
        assert answers == {site.node.hardware("e0")}
    finally:
        site.node.ip("link", "del", "e1")


@pytest.mark.parametrize("ours", [IPV4, IPV6])
def test_tickle_has_a_client_see_that_its_connection_is_dead(site: Site, ours: str) -> None:
    site.start_guard()
    daemon = site.start_daemon()
    daemon.claim()
    listener = site.node.inside(lambda: socket.create_server((ours, 5061), family=_family(ours)))
    with listener:
        client = site.phone.inside(lambda: socket.create_connection((ours, 5061), 5))
        with client:
            accepted, (host, port, *_) = listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: it dies without a word, as with its machine
            accepted.close()
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            daemon.say("tickle", ours, 5061, host, port)
            client.settimeout(3)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
