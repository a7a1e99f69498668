from pathlib import Path

import pytest

from sipha.errors import ConfigError
from sipha.vip.settings import read_settings, wanted

NETLINK = '[virtual_address]\nmode = "netlink"\n'


def write(tmp_path: Path, text: str, mode: int = 0o644) -> Path:
    path = tmp_path / "sipha.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_guard_reads_its_addresses_and_its_socket(tmp_path: Path) -> None:
    path = write(tmp_path, NETLINK + 'addresses = ["192.0.2.10%eth0", "2001:db8::10%wan/64"]\n[sip]\nport = 5060\n')
    settings = read_settings(path)
    assert settings.placements == (("192.0.2.10", "eth0", 32), ("2001:db8::10", "wan", 64))
    assert settings.socket == Path("/run/sipha-guard/socket")
    path.write_text(NETLINK + 'addresses = []\nguard = "/run/other"\n')
    assert read_settings(path).socket == Path("/run/other")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[virtual_address", "can't be read: "),
        ("", 'mode: is not "netlink"'),
        ('[virtual_address]\nmode = "hook"', 'mode: is not "netlink"'),
        (NETLINK, "addresses: is missing"),
        (NETLINK + "addresses = 3", "virtual_address: "),
        (NETLINK + "addresses = [3]", "virtual_address: "),
        (NETLINK + 'addresses = ["sipha%eth0"]', "'sipha%eth0' is not an IP address"),
        (NETLINK + 'addresses = ["192.0.2.10"]', "'192.0.2.10' names no interface"),
        (NETLINK + 'addresses = ["192.0.2.10%eth0"]\nguard = 3', "virtual_address: "),
    ],
)
def test_guard_says_what_it_can_not_use(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(write(tmp_path, text))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_guard_believes_no_file_that_others_can_change(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, NETLINK + 'addresses = ["192.0.2.10%eth0"]', mode)
    with pytest.raises(ConfigError, match="others than root can change it"):
        read_settings(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", False),
        ('[virtual_address]\nmode = "hook"', False),
        ("[virtual_address]\naddresses = []", False),
        (NETLINK, True),
        ('[virtual_address]\nmode = "netlnk"', True),
        ("virtual_address = 3", True),
        ("[virtual_address", True),
    ],
)
def test_guard_is_wanted_unless_the_configuration_surely_says_otherwise(
    tmp_path: Path, text: str, answer: bool
) -> None:
    assert wanted(write(tmp_path, text)) is answer


def test_guard_that_cant_read_the_configuration_is_wanted_to_say_so(tmp_path: Path) -> None:
    assert wanted(tmp_path / "absent.toml")
