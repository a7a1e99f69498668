from __future__ import annotations

from pathlib import Path

import pytest

from sipha import config
from sipha.config.changes import Key, compare, keys
from sipha.toml import Section

MINIMAL = '[node]\nname = "a"\n[[domains]]\nname = "sipha.test"\n'


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "sipha.toml"
    path.write_text(text)
    return config.load(path)


def test_each_key_is_named_once_by_its_path() -> None:
    paths = [key.path for key in keys()]
    assert len(set(paths)) == len(paths)
    assert {"node.name", "domains", "cluster.peers", "sip.port", "log.level"} <= set(paths)


def test_whatever_is_said_to_be_live_is_a_key() -> None:
    sections = set(Section.__subclasses__())
    for section in sections:
        assert section.live <= set(section.__struct_fields__), section


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        (MINIMAL + "# a comment\n[sip]\nport = 5060\n", ()),
        (MINIMAL + "[sip]\nport = 5070\nt1 = 1.0\n", (Key("sip.port", True), Key("sip.t1", False))),
        (MINIMAL.replace("sipha.test", "example.test"), (Key("domains", True),)),
        (MINIMAL.replace('"a"', '"b"'), (Key("node.name", False),)),
        (MINIMAL + '[[peers]]\nname = "gw"\nnetworks = ["192.0.2.1"]\n', (Key("peers", True),)),
    ],
)
def test_differences_are_named_by_key(tmp_path: Path, text: str, changed: tuple[Key, ...]) -> None:
    assert compare(load(tmp_path, MINIMAL), load(tmp_path, text)) == changed
