from __future__ import annotations

import pytest

from sipha import toml
from sipha.config import Config

GOOD = '[node]\nname = "a"\n[[domains]]\nname = "sipha.test"\n'


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (GOOD, []),
        ("", ["node", "domains"]),
        (
            GOOD + "[sip]\nprt = 1\nport = 0\nt1 = true\n[log]\nlevel = 'loud'\n",
            ["sip.prt", "sip.port", "sip.t1", "log.level"],
        ),
        (
            GOOD + "[registrar]\nedges = ['192.0.2.1', 'x', 5]\nmin_expires = 'a'\n[[peers]]\nnetworks = ['y']\n",
            [
                "registrar.edges[1]",
                "registrar.edges[2]",
                "registrar.min_expires",
                "peers[0].networks[0]",
                "peers[0].name",
            ],
        ),
        (GOOD + "[[domains]]\nname = 'a b'\n[[domains]]\nname = ''\n", ["domains[1].name", "domains[2].name"]),
        (GOOD + "[sip]\nport = [1]\n[nat]\ndetect = 1\n[proxy]\n[[admin]]\n", ["sip.port", "nat.detect", "admin"]),
        ("node = 3\ndomains = 4\n", ["node", "domains"]),
    ],
)
def test_all_faults_are_found(text: str, keys: list[str]) -> None:
    found = toml.faults(toml.parse(text), Config)
    assert [fault.partition(": ")[0] for fault in found] == keys


def test_a_key_is_judged_by_what_others_say_only_when_all_are_sound() -> None:
    text = GOOD + "[registrar]\nmin_expires = 10\ndefault_expires = 20\n[sip]\nt1 = 5.0\n"
    assert toml.faults(toml.parse(text), Config) == ["sip.t2: 4.0 must not be less than t1 = 5.0"]
    assert toml.faults(toml.parse(text + "port = 0\n"), Config) == ["sip.port: 0 is out of bounds; write at least 1"]


def test_first_fault_is_what_a_node_says() -> None:
    text = GOOD + '[[peers]]\nname = "a"\nnetworks = ["x"]\n[[peers]]\nname = ""\n'
    with pytest.raises(ValueError, match="is not an IP network") as caught:
        toml.convert(toml.parse(text), Config)
    assert toml.faults(toml.parse(text), Config)[0] == str(caught.value)
