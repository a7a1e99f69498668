import re
from pathlib import Path
from types import NoneType
from typing import get_args

import msgspec
import pytest

from sipha import config
from sipha.errors import ConfigError
from sipha.nat import detection
from sipha.toml import Section

DEFAULT = Path(__file__).parents[2] / "etc" / "sipha.toml"

MINIMAL = """
[node]
name = "a"
[[domains]]
name = "sipha.test"
"""

ADMIN = '[admin]\nlisten = "192.0.2.11:8080"\ncertificate = "/c.pem"\nkey = "/k.pem"\n'
TOKEN = f'[[admin.tokens]]\nname = "grafana"\nrole = "read"\nsha256 = "{"0" * 64}"\n'
CLIENT = '[[admin.clients]]\nname = "alice@sipha.test"\nrole = "operate"\n'
CLUSTER = """
[cluster]
listen = "127.0.0.11:7000"
plaintext = true
[[cluster.peers]]
name = "b"
address = "127.0.0.12:7000"
admin = "http://127.0.0.12:8080"
"""


TLS = """
[cluster]
listen = "192.0.2.11:7000"
ca = "/etc/sipha/ca.pem"
certificate = "/etc/sipha/cert.pem"
key = "/etc/sipha/key.pem"
"""


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "sipha.toml"
    path.write_text(text)
    return config.load(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    file = f"{tmp_path / 'sipha.toml'}: "
    assert message.startswith(file)
    assert "\n" not in message
    return message.removeprefix(file)


def sections(section: type[Section] = config.Config) -> list[tuple[str, type[Section]]]:
    """Each table's heading in TOML, and its type."""
    found: list[tuple[str, type[Section]]] = []

    def walk(path: str, kind: type[Section]) -> None:
        for field in msgspec.structs.fields(kind):
            name = f"{path}.{field.name}" if path else field.name
            items = get_args(field.type)
            if isinstance(field.type, type) and issubclass(field.type, Section):
                found.append((f"[{name}]", field.type))
                walk(name, field.type)
            elif items and isinstance(items[0], type) and issubclass(items[0], Section):
                found.append((f"[{name}]" if NoneType in items else f"[[{name}]]", items[0]))
                walk(name, items[0])

    walk("", section)
    return found


def test_default_file_loads_and_changes_nothing(tmp_path: Path) -> None:
    assert config.load(DEFAULT) == load(tmp_path, MINIMAL)


def test_default_file_loads_with_its_comments_taken_away(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\S)", "", DEFAULT.read_text(), flags=re.MULTILINE)
    text = text.replace("plaintext = false", "plaintext = true")
    before, section, admin = text.partition("[admin]")  # whose clients want certificates
    admin = re.sub('^(certificate|key|ca) = ""', r'\1 = "/\1.pem"', admin, flags=re.MULTILINE)
    loaded = load(tmp_path, before + section + admin)
    assert loaded.cluster.peers[0].name == "b"
    assert loaded.peers[0].name == "carrier"
    assert (loaded.admin.tokens[0].role, loaded.admin.clients[0].role) == ("read", "admin")


@pytest.mark.parametrize(("heading", "section"), sections())
def test_default_file_has_each_key_with_its_default(heading: str, section: type[Section]) -> None:
    text = re.sub(r"^#(?=\S)", "", DEFAULT.read_text(), flags=re.MULTILINE)
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"{heading} is missing"
    table = re.split(r"^\[", rest, maxsplit=1, flags=re.MULTILINE)[0]
    keys = dict(re.findall(r"^([a-z_0-9]+) = ([^#\n]*?)\s*(?:#.*)?$", table, re.MULTILINE))
    nested = {field.name for field in msgspec.structs.fields(section) if _is_table(field.type)}
    assert set(keys) == set(section.__struct_fields__) - nested
    for field in msgspec.structs.fields(section):
        if field.name not in nested and not field.required:
            default = msgspec.json.decode(msgspec.json.encode(field.default, enc_hook=str))
            assert msgspec.toml.decode(f"x = {keys[field.name]}")["x"] == default


def _is_table(kind: object) -> bool:
    return any(isinstance(item, type) and issubclass(item, Section) for item in (kind, *get_args(kind)))


def test_config_has_typed_values(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        MINIMAL.replace('"sipha.test"', '"Sipha.TEST."\naliases = ["[2001:DB8::1]"]')
        + CLUSTER
        + '[virtual_address]\naddresses = ["127.0.0.10", "2001:DB8:0::10"]\n'
        + '[[peers]]\nname = "carrier"\nnetworks = ["192.0.2.0/24", "2001:db8::/32"]\n'
        + '[admin]\nlisten = "[::1]:8080"\n',
    )
    assert loaded.cluster.listen.address == ("127.0.0.11", 7000)
    assert loaded.cluster.peers[0].address.address == ("127.0.0.12", 7000)
    assert loaded.admin.listen.address == ("::1", 8080)
    assert loaded.virtual_address.addresses == ("127.0.0.10", "2001:db8::10")
    assert [network.network.prefixlen for network in loaded.peers[0].networks] == [24, 32]
    assert loaded.default_domain.name == "sipha.test"
    assert loaded.default_domain.realm == "sipha.test"
    assert loaded.default_domain.aliases == ("[2001:db8::1]",)
    assert loaded.node.data_dir.path == Path("/var/lib/sipha")


def test_virtual_addresses_have_interface_and_prefix(tmp_path: Path) -> None:
    addresses = '["192.0.2.10%eth0", "198.51.100.7%wan.5/24", "2001:DB8:0::10%eth0/64"]'
    settings = load(
        tmp_path, f'{MINIMAL}[virtual_address]\nmode = "netlink"\naddresses = {addresses}\n'
    ).virtual_address
    assert settings.addresses == ("192.0.2.10%eth0", "198.51.100.7%wan.5/24", "2001:db8::10%eth0/64")
    assert settings.placements == (
        ("192.0.2.10", "eth0", 32),
        ("198.51.100.7", "wan.5", 24),
        ("2001:db8::10", "eth0", 64),
    )
    assert settings.hosts == ("192.0.2.10", "198.51.100.7", "2001:db8::10")


def test_node_without_cluster_section_stands_alone(tmp_path: Path) -> None:
    cluster = load(tmp_path, MINIMAL).cluster
    assert (cluster.peers, cluster.encrypted) == ((), False)


def test_nodes_with_certificates_talk_across_machines(tmp_path: Path) -> None:
    peer = '[[cluster.peers]]\nname = "b"\naddress = "192.0.2.12:7000"\nadmin = "http://192.0.2.12:8080"\n'
    cluster = load(tmp_path, MINIMAL + TLS + peer).cluster
    assert cluster.encrypted
    assert cluster.certificate.path == Path("/etc/sipha/cert.pem")


@pytest.mark.parametrize(("text", "wish"), [("", 100), ("priority = 7", 7), ("priority = 7\nwitness = true", 0)])
def test_witness_doesnt_wish_to_lead(tmp_path: Path, text: str, wish: int) -> None:
    assert load(tmp_path, f"{MINIMAL}[cluster]\n{text}\n").cluster.wish_to_lead == wish


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("600s", 600), ("90m", 5400), ("12h", 43200), ("30d", 2592000)]
)
def test_history_is_kept_for_as_long_as_is_written(tmp_path: Path, text: str, seconds: int) -> None:
    history = load(tmp_path, f'{MINIMAL}[history]\nkeep = "{text}"\n').history
    assert (history.keep.seconds, history.kept) == (seconds, seconds > 0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # syntax
        ("[node\nname = 1", "line 1, column 6: not TOML: "),
        ("a = 1\na = 2", "line 2, at the end of the file: not TOML: Cannot overwrite a value"),
        ("a = 1\nb = [", "line 2, at the end of the file: not TOML: Invalid value"),
        # what isn't there
        ("", "node: is missing; add a table [node]"),
        ('[node]\nname = "a"', "domains: is missing; add a table [[domains]]"),
        ('[node]\n[[domains]]\nname = "x"', "node.name: is missing; write name = ..."),
        ('domains = []\n[node]\nname = "a"', "domains: needs at least one"),
        (MINIMAL + '[[peers]]\nname = "c"', "peers[0].networks: is missing"),
        # what nobody knows
        (MINIMAL + "[sip]\nprt = 1", "sip.prt: is not a known key; did you mean port?"),
        (MINIMAL + "[registrer]", "registrer: is not a known key; did you mean registrar?"),
        (MINIMAL + "[admin]\nxyzzy = 1", "admin.xyzzy: is not a known key; the keys here are listen"),
        (MINIMAL + 'alias = ["x"]', "domains[0].alias: is not a known key; did you mean aliases?"),
        (MINIMAL + CLUSTER + 'adress = "x"', "cluster.peers[0].adress: is not a known key; did you mean address?"),
        (MINIMAL + '[admin]\n"a`b" = 1', "admin.a`b: is not a known key"),
        # types
        (MINIMAL + '[sip]\nport = "5060"', 'sip.port: "5060" is a string; write an integer'),
        (MINIMAL + "[sip]\nport = 1.5", "sip.port: 1.5 is a number; write an integer"),
        (MINIMAL + "[sip]\nt1 = true", "sip.t1: true is a boolean; write a number"),
        (MINIMAL + '[sip]\ntransports = "udp"', 'sip.transports: "udp" is a string; write an array'),
        (MINIMAL + "[cluster]\nplaintext = 1", "cluster.plaintext: 1 is an integer; write true or false"),
        (MINIMAL + "[admin]\nlisten = 8080", "admin.listen: 8080 is an integer; write a string"),
        (MINIMAL + "[admin]\nlisten = 2024-01-01", 'admin.listen: "2024-01-01" is a date or time; write a string'),
        ("node = 3\n" + MINIMAL.replace('[node]\nname = "a"\n', ""), "node: 3 is an integer; write a table"),
        # bounds and choices
        (MINIMAL + "[sip]\nport = 65536", "sip.port: 65536 is out of bounds; write at most 65535"),
        (MINIMAL + "[sip]\ntimer_c = 180.0", "sip.timer_c: 180.0 is out of bounds; write more than 180"),
        (MINIMAL + "[cluster]\npriority = 1001", "cluster.priority: 1001 is out of bounds; write at most 1000"),
        (MINIMAL + '[cluster]\ndurability = "no"', 'cluster.durability: "no" is not a choice; write "fsync" or "os"'),
        (MINIMAL + "[sip]\nidle_timeout = 0", "sip.idle_timeout: 0 is out of bounds; write more than 0"),
        (MINIMAL + "[sip]\nt1 = nan", "sip.t1: nan is out of bounds; write at least 0.05"),
        (
            MINIMAL + '[sip]\ntransports = ["udp", "sctp"]',
            'sip.transports[1]: "sctp" is not a choice; write "udp" or "tcp"',
        ),
        (MINIMAL + '[sip]\ntransports = ["tcp"]', 'sip.transports: must contain "udp"'),
        (MINIMAL + '[history]\nkeep = "30"', "history.keep: '30' is not a time; write one such as \"30d\""),
        (MINIMAL + "[history]\nkeep = 0", "history.keep: 0 is an integer; write a string"),
        (MINIMAL + "[history]\nmax_bytes = 1", "history.max_bytes: 1 is out of bounds; write at least 1048576"),
        (MINIMAL + "[sip]\nt1 = 5", "sip.t2: 4.0 must not be less than t1 = 5.0"),
        (MINIMAL + "[registrar]\nout_of_order = 400", "registrar.out_of_order: 400 is not a choice; write 500 or 200"),
        (MINIMAL + "[registrar]\nmin_expires = 4000", "registrar.default_expires: 3600 must lie between"),
        (
            MINIMAL + "[registrar]\nmin_expires = 4000\ndefault_expires = 5000",
            "registrar.min_expires: 4000 is more than 3600",
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "vrrp"',
            'virtual_address.mode: "vrrp" is not a choice; write "loopback" or "netlink" or "external" or "hook"',
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "netlink"\naddresses = ["192.0.2.10"]',
            "virtual_address.addresses: '192.0.2.10' names no interface to add it to; write one such as",
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "external"\naddresses = ["192.0.2.10%eth0"]',
            "virtual_address.addresses: '192.0.2.10%eth0' names an interface, but in external mode",
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "hook"',
            "virtual_address.hook: is missing; write the command",
        ),
        (
            MINIMAL + '[virtual_address]\nhook = "/usr/local/bin/move"',
            "virtual_address.hook: '/usr/local/bin/move' is never run in loopback mode",
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "netlink"\naddresses = ["192.0.2.10%eth0", "192.0.2.10%eth1"]',
            "virtual_address.addresses: '192.0.2.10' appears twice",
        ),
        (
            MINIMAL + '[virtual_address]\nmode = "netlink"\naddresses = ["192.0.2.10%eth0/33"]',
            "virtual_address.addresses[0]: '192.0.2.10%eth0/33' has no interface and prefix length",
        ),
        (MINIMAL + "[cluster]\nheartbeat = 0.2", "cluster.heartbeat: 0.2 is too long for election_min = 0.4"),
        (MINIMAL + "[cluster]\nadmin_port = 7001", "cluster.admin_port: is of use only with ca, certificate and key"),
        (MINIMAL + TLS + "admin_port = 7000", "cluster.admin_port: 7000 is the port of listen"),
        (
            MINIMAL + TLS.replace("192.0.2.11", "127.0.0.1") + "admin_port = 8080",
            "admin.listen: '127.0.0.1:8080' is taken by cluster.admin_port",
        ),
        (MINIMAL + "[cluster]\nelection_min = 0.9", "cluster.election_max: 0.8 must be more than election_min = 0.9"),
        (
            MINIMAL + '[nat]\ndetect = ["private-via", "rfc1918"]',
            'nat.detect[1]: "rfc1918" is not a choice; write '
            + " or ".join(f'"{name}"' for name in get_args(detection.Test)),
        ),
        (MINIMAL + '[nat]\ndetect = ["private-via", "private-via"]', "nat.detect: 'private-via' appears twice"),
        (MINIMAL + "[nat]\nping_interval = 2.0", "nat.ping_timeout: 3 must be less than ping_interval = 2"),
        (
            MINIMAL + '[nat]\nping_method = "udp"\nremove_unreachable = true',
            'nat.remove_unreachable: nobody answers pings of ping_method = "udp"; write "OPTIONS"',
        ),
        # texts with a syntax of their own
        (
            MINIMAL + '[nat]\nping_from = "ping"',
            "nat.ping_from: 'ping' is not a SIP URI; write one such as \"sip:ping@sipha.test\"",
        ),
        (
            MINIMAL + '[virtual_address]\naddresses = ["sipha"]',
            "virtual_address.addresses[0]: 'sipha' is not an IP address",
        ),
        (MINIMAL + '[virtual_address]\naddresses = ["0.0.0.0"]', "virtual_address.addresses[0]: '0.0.0.0' can't be"),
        (MINIMAL + "[virtual_address]\naddresses = []", "virtual_address.addresses: needs at least one address"),
        (MINIMAL + '[admin]\nlisten = "127.0.0.1"', "admin.listen: '127.0.0.1' is not an IP address and port"),
        (MINIMAL + '[admin]\nlisten = "::1:8080"', "admin.listen: '::1:8080' is not an IP address and port"),
        (MINIMAL + '[admin]\nlisten = "127.0.0.1:0"', "admin.listen: '127.0.0.1:0' is not an IP address and port"),
        (
            MINIMAL + '[registrar]\nedges = ["192.0.2.1/24"]',
            "registrar.edges[0]: '192.0.2.1/24' is not an IP network; the network is \"192.0.2.0/24\"",
        ),
        (MINIMAL + '[registrar]\nedges = ["all"]', "registrar.edges[0]: 'all' is not an IP network; write one such as"),
        (MINIMAL + '[[peers]]\nname = "c"\nnetworks = []', "peers[0].networks: needs at least one network"),
        (MINIMAL.replace('"a"', '"a b"'), "node.name: 'a b' is not a name"),
        (MINIMAL.replace('"a"', '"A"'), "node.name: 'A' is not a name; write lower-case letters"),
        (MINIMAL + '[cluster]\nname = "my.cluster"', "cluster.name: 'my.cluster' is not a name"),
        (MINIMAL + '[[peers]]\nname = "a b"\nnetworks = []', "peers[0].name: 'a b' is not a name"),
        (MINIMAL.replace('"a"', '"a"\ndata_dir = "var"'), "node.data_dir: 'var' is not an absolute path"),
        (MINIMAL.replace('"sipha.test"', '"sipha test"'), "domains[0].name: 'sipha test' is not a domain"),
        (MINIMAL.replace('"sipha.test"', '"[::x]"'), "domains[0].name: '::x' is not an IP address"),
        (MINIMAL + "realm = 'a\"b'", "domains[0].realm: 'a\"b' has quotes"),
        (MINIMAL + "algorithms = []", "domains[0].algorithms: needs at least one"),
        (
            MINIMAL + 'algorithms = ["MD5", "SHA-256"]',
            'domains[0].algorithms: must stand strongest first and once each; write ["SHA-256", "MD5"]',
        ),
        (MINIMAL + 'algorithms = ["SHA-1"]', 'domains[0].algorithms[0]: "SHA-1" is not a choice'),
        (
            MINIMAL + CLUSTER.replace("http:", "ftp:"),
            "cluster.peers[0].admin: 'ftp://127.0.0.12:8080' is not the URL of an admin",
        ),
        (
            MINIMAL + CLUSTER.replace(":8080", ":x"),
            "cluster.peers[0].admin: 'http://127.0.0.12:x' is not the URL of an admin",
        ),
        # what must differ, and what must not leave the machine
        (MINIMAL + '[[domains]]\nname = "SIPHA.test"', "domains: name or alias 'sipha.test' appears twice"),
        (MINIMAL + 'aliases = ["sipha.test"]', "domains: name or alias 'sipha.test' appears twice"),
        (
            MINIMAL
            + '[[peers]]\nname = "c"\nnetworks = ["192.0.2.1"]'
            + '\n[[peers]]\nname = "c"\nnetworks = ["192.0.2.2"]',
            "peers: name 'c' appears twice",
        ),
        (MINIMAL + '[virtual_address]\naddresses = ["::1", "0::1"]', "virtual_address.addresses: '::1' appears twice"),
        (MINIMAL + '[sip]\ntransports = ["udp", "udp"]', "sip.transports: 'udp' appears twice"),
        (
            MINIMAL + CLUSTER + '[[cluster.peers]]\nname = "b"\naddress = "127.0.0.13:7000"\nadmin = "http://[::1]:1"',
            "cluster.peers: name 'b' appears twice",
        ),
        (
            MINIMAL + CLUSTER + '[[cluster.peers]]\nname = "c"\naddress = "127.0.0.12:7000"\nadmin = "http://[::1]:1"',
            "cluster.peers: address '127.0.0.12:7000' appears twice",
        ),
        (MINIMAL + CLUSTER.replace('"b"', '"a"'), "cluster.peers: 'a' is this node itself; list only the other nodes"),
        (
            MINIMAL + CLUSTER.replace(".12:7000", ".11:7000"),
            "cluster.peers: '127.0.0.11:7000', the address of b, is this node's",
        ),
        (MINIMAL + CLUSTER.replace("true", "false"), "cluster.ca: is missing; write ca, certificate and key"),
        (MINIMAL + TLS.replace('key = "/etc/sipha/key.pem"', ""), "cluster.key: is missing; ca, certificate and key"),
        (MINIMAL + TLS.replace("/etc/sipha/ca.pem", ""), "cluster.ca: is missing; ca, certificate and key"),
        (MINIMAL + TLS + "plaintext = true", "cluster.plaintext: true contradicts ca, certificate and key"),
        (MINIMAL + TLS.replace("/etc/sipha/key", "key"), "cluster.key: 'key.pem' is not an absolute path"),
        (MINIMAL + '[cluster]\nlisten = "192.0.2.11:7000"', "cluster.listen: '192.0.2.11:7000' is not a loopback"),
        (
            MINIMAL + CLUSTER.replace("127.0.0.12:7000", "192.0.2.12:7000"),
            "cluster.peers: '192.0.2.12:7000' is not a loopback address",
        ),
        (
            MINIMAL + CLUSTER.replace("127.0.0.11:7000", "0.0.0.0:7000"),
            "cluster.listen: '0.0.0.0:7000' is not a loopback address",
        ),
        (MINIMAL + ADMIN, "admin.listen: '192.0.2.11:8080' is not a loopback address, and nobody is asked who he is"),
        (
            MINIMAL + ADMIN.replace('certificate = "/c.pem"\n', ""),
            "admin.certificate: is missing; key is of use only with it",
        ),
        (MINIMAL + ADMIN.replace('key = "/k.pem"\n', ""), "admin.key: is missing; certificate is of use only with it"),
        (MINIMAL + '[admin]\nca = "/ca.pem"', "admin.certificate: is missing; ca is of use only with it"),
        (MINIMAL + ADMIN + CLIENT, "admin.ca: is missing, and without it no certificate of [[admin.clients]] can be"),
        (
            MINIMAL + '[admin]\nlisten = "192.0.2.11:8080"\n' + TOKEN,
            "admin.listen: '192.0.2.11:8080' is not a loopback",
        ),
        (MINIMAL + TOKEN + TOKEN, "admin.tokens: name 'grafana' appears twice"),
        (
            MINIMAL + ADMIN + 'ca = "/ca.pem"\n' + CLIENT + CLIENT,
            "admin.clients: name 'alice@sipha.test' appears twice",
        ),
        (
            MINIMAL + TOKEN.replace("read", "root"),
            'admin.tokens[0].role: "root" is not a choice; write "read" or "operate" or "admin"',
        ),
        (MINIMAL + TOKEN.replace("grafana", "a b"), "admin.tokens[0].name: 'a b' is not a name"),
        (MINIMAL + TOKEN.replace('role = "read"\n', ""), "admin.tokens[0].role: is missing"),
        (
            MINIMAL + ADMIN + CLIENT.replace("alice@", "al ice@"),
            "admin.clients[0].name: 'al ice@sipha.test' is not a name",
        ),
        (MINIMAL + ADMIN + "rate = 0.5", "admin.rate: 0.5 is out of bounds; write at least 1"),
        (
            MINIMAL + '[admin]\nlisten = "0.0.0.0:8080"',
            "admin.listen: '0.0.0.0:8080' is not a loopback address, and the admin must not talk in the clear",
        ),
    ],
)
def test_config_names_what_is_wrong_and_what_would_be_right(tmp_path: Path, text: str, wanted: str) -> None:
    assert complaint(tmp_path, text).startswith(wanted)


def test_config_never_repeats_a_token_that_stands_for_its_hash(tmp_path: Path) -> None:
    said = complaint(tmp_path, MINIMAL + TOKEN.replace("0" * 64, "sipha_secret"))
    assert said.startswith("admin.tokens[0].sha256: must be the 64 hexadecimal digits that siphactl token shows")
    assert "secret" not in said


def test_admin_may_be_asked_from_elsewhere_under_tls_by_those_who_are_known(tmp_path: Path) -> None:
    admin = load(tmp_path, MINIMAL + ADMIN + TOKEN.replace("0" * 64, "AB" * 32)).admin
    assert admin.tokens[0].sha256.digest == b"\xab" * 32
    admin = load(tmp_path, MINIMAL + ADMIN + 'ca = "/ca.pem"\n' + CLIENT).admin
    assert (admin.clients[0].name, admin.clients[0].role) == ("alice@sipha.test", "operate")
    assert load(tmp_path, MINIMAL + TOKEN).admin.tokens  # and on this machine even without


def test_admin_of_a_peer_may_be_asked_under_tls(tmp_path: Path) -> None:
    loaded = load(tmp_path, MINIMAL + CLUSTER.replace("http://", "https://"))
    assert loaded.cluster.peers[0].admin == "https://127.0.0.12:8080"


def test_config_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read: No such file or directory"):
        config.load(tmp_path / "nowhere.toml")


def test_config_names_the_byte_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "sipha.toml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="byte 2 is not UTF-8"):
        config.load(path)


def test_config_shortens_what_it_quotes(tmp_path: Path) -> None:
    assert len(complaint(tmp_path, MINIMAL + f"[sip]\nport = {'9' * 300!r}")) < 120
