from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sipha import config
from sipha.nat import stun
from sipha.service.nat import make_detection, make_force_rport
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.origin import origin_of
from sipha.sip.parser import parse
from tests.service.alone import CONFIG, Alone

MORE = """
[registrar]
edges = ["203.0.113.9"]
[[peers]]
name = "carrier"
networks = ["203.0.113.8"]
"""


def load(directory: Path, more: str) -> config.Config:
    path = directory / "sipha.toml"
    path.write_text(CONFIG.format(directory=directory, cluster="plaintext = true") + more)
    return config.load(path)


def request(via: str = "10.0.0.1:5060") -> Request:
    head = f"OPTIONS sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP {via};branch=z9hG4bK1\r\n"
    rest = "From: <sip:a@x>;tag=1\r\nTo: <sip:sipha.test>\r\nCall-ID: a\r\nCSeq: 1 OPTIONS\r\n\r\n"
    parsed = parse((head + rest).encode())
    assert isinstance(parsed, Request)
    return parsed


def flow(host: str, transport: str = "UDP") -> Flow:
    return Flow(transport, ("192.0.2.10", 5060), (host, 40000), int(transport != "UDP"))


@pytest.mark.parametrize("more", ["", MORE])
def test_response_goes_back_to_the_port_of_a_phone_behind_nat_and_of_no_server(tmp_path: Path, more: str) -> None:
    forced = make_force_rport(load(tmp_path, more))
    assert forced(request(), flow("203.0.113.7"))
    assert not forced(request("203.0.113.7:5060"), flow("203.0.113.7"))
    assert not forced(request("10.0.0.1:5060;rport"), flow("203.0.113.7"))  # it has asked
    assert not forced(request(), flow("203.0.113.7", "TCP"))
    for server in ("203.0.113.8", "203.0.113.9"):
        assert forced(request(), flow(server)) == (not more)


def test_configuration_says_what_is_detected(tmp_path: Path) -> None:
    nated = flow("203.0.113.7")
    assert make_detection(load(tmp_path, ""))(origin_of(request()), nated)
    assert not make_detection(load(tmp_path, "[nat]\ndetect = []"))(origin_of(request()), nated)


def test_node_answers_stun_on_its_sip_port(alone: Alone) -> None:
    asked = bytes.fromhex("000100002112a442") + b"transaction!"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        phone.setblocking(False)
        phone.sendto(asked, ("127.0.0.50", 5060))
        answers: list[bytes] = []

        def received() -> bool:
            try:
                answers.append(phone.recv(100))
            except BlockingIOError:
                return False
            return True

        alone.world.until(received)
        assert answers == [stun.answer(asked, phone.getsockname())]


def test_node_shows_what_its_pings_do(alone: Alone) -> None:
    status = alone.node.view.status()
    assert status.pings == "on"
    assert status.counters["pings_sent"] == 0
    turned: list[object] = []
    alone.node.view.turn_pings(turned.append, on=False)
    alone.world.until(lambda: turned)
    assert alone.node.view.status().pings == "off"
    assert not alone.node.view.pings()
