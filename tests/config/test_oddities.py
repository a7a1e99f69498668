from __future__ import annotations

from pathlib import Path

import pytest

from sipha import config
from sipha.config.oddities import oddities

MINIMAL = '[node]\nname = "a"\n[[domains]]\nname = "sipha.test"\n'
TLS = 'ca = "/etc/sipha/ca.pem"\ncertificate = "/etc/sipha/cert.pem"\nkey = "/etc/sipha/key.pem"\n'


def peers(*hosts: str) -> str:
    return "".join(
        f'[[cluster.peers]]\nname = "n{number}"\naddress = "{host}:7000"\nadmin = "http://{host}:8080"\n'
        for number, host in enumerate(hosts)
    )


def odd(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "sipha.toml"
    path.write_text(MINIMAL + text)
    return [oddity.partition(":")[0] for oddity in oddities(config.load(path))]


def test_what_is_delivered_is_not_odd() -> None:
    assert not list(oddities(config.load(Path(__file__).parents[2] / "etc" / "sipha.toml")))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[nat]\nping_interval = 31\n", ["nat.ping_interval"]),
        ('[nat]\nping_interval = 31\nping_scope = "none"\n', []),
        ("[nat]\nremove_unreachable = true\nmax_lost = 1\n", ["nat.max_lost"]),
        ('[[peers]]\nname = "all"\nnetworks = ["192.0.2.1", "0.0.0.0/0"]\n', ["peers[0].networks"]),
        ('[registrar]\nedges = ["::/0"]\n', ["registrar.edges"]),
        ("[cluster]\nwitness = true\n", ["cluster.priority"]),
        ("[cluster]\nwitness = true\npriority = 0\n", []),
        ("[cluster]\nplaintext = true\n" + peers("127.0.0.12", "127.0.0.13"), []),
        ("[cluster]\nplaintext = true\n" + peers("127.0.0.12"), ["cluster.peers"]),
        ("[cluster]\nplaintext = true\n" + peers("127.0.0.12", "127.0.0.10"), ["cluster.peers[1].address"]),
        (
            "[cluster]\nplaintext = true\n" + peers("127.0.0.12", "127.0.0.13").replace("admin", "#admin", 1),
            ["cluster.admin_port"],
        ),
        ('[admin]\nlisten = "127.0.0.10:8080"\n', ["admin.listen"]),
        (f'[cluster]\nlisten = "192.0.2.1:7000"\n{TLS}' + peers("192.0.2.2", "192.0.2.3"), ["virtual_address.mode"]),
    ],
)
def test_what_is_odd_is_named_by_its_key(tmp_path: Path, text: str, keys: list[str]) -> None:
    assert odd(tmp_path, text) == keys
