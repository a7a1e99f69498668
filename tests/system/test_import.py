"""100,000 subscribers and their phones come from OpenSIPS and Kamailio: a dump, and databases that run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from sipha.sandbox import Sandbox
from sipha.sip.digest import ha1
from tests.system import databases
from tests.system.conftest import agree, wait_until
from tests.system.ua import UserAgent

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]

DOMAIN = "sipha.test"
SUBSCRIBERS = 100_000
PHONES = 20_000
PREFIX = "127.0.22"

_SUBSCRIBER = """CREATE TABLE subscriber (
    id INTEGER NOT NULL PRIMARY KEY, username VARCHAR(64) NOT NULL, domain VARCHAR(64) NOT NULL,
    password VARCHAR(64) NOT NULL, ha1 VARCHAR(128) NOT NULL, {more})"""
_OPENSIPS = """CREATE TABLE location (
    contact_id BIGINT NOT NULL PRIMARY KEY, username CHAR(64) NOT NULL, domain CHAR(64), contact TEXT NOT NULL,
    received CHAR(255), path CHAR(255), expires INTEGER NOT NULL, q FLOAT NOT NULL, callid CHAR(255) NOT NULL,
    cseq INTEGER NOT NULL, flags INTEGER NOT NULL, cflags CHAR(255), user_agent CHAR(255) NOT NULL,
    socket CHAR(64), methods INTEGER, sip_instance CHAR(255), attr CHAR(255))"""
_KAMAILIO = """CREATE TABLE location (
    id INTEGER NOT NULL PRIMARY KEY, ruid VARCHAR(64) NOT NULL, username VARCHAR(64) NOT NULL, domain VARCHAR(64),
    contact VARCHAR(512) NOT NULL, received VARCHAR(128), expires TIMESTAMP NOT NULL, q REAL NOT NULL,
    callid VARCHAR(255) NOT NULL, cseq INTEGER NOT NULL, flags INTEGER NOT NULL, cflags INTEGER NOT NULL,
    user_agent VARCHAR(255) NOT NULL, socket VARCHAR(64), methods INTEGER, instance VARCHAR(255), reg_id INTEGER)"""


def subscribers(name: str) -> Iterator[tuple[object, ...]]:
    """Half with a plain password, half with the hash alone."""
    for number in range(SUBSCRIBERS):
        user = f"{name}{number}"
        plain = number % 2 == 0
        secret = f"{user}-secret"
        yield number, user, DOMAIN, secret if plain else "", "" if plain else ha1("MD5", user, DOMAIN, secret), ""


@pytest.fixture(scope="module", autouse=True)
def _servers_are_there() -> None:
    if missing := databases.missing():
        pytest.skip(f"{missing} is missing")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("cluster"), prefix=PREFIX, extra='[nat]\nping_scope = "none"')
    try:
        sandbox.start()
        yield sandbox
    finally:
        sandbox.stop()


def imports(cluster: Sandbox, origin: str, source: str) -> dict[str, dict[str, int]]:
    """What `siphactl import` says that became of the rows."""
    urls = ",".join(node.admin for node in cluster.nodes)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("siphactl")), "import", origin, source, "--json", "--time-zone", "UTC"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SIPHA_URL": urls},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return {kind: result[kind] for kind in ("accounts", "bindings")}


def counts(cluster: Sandbox) -> tuple[int, int]:
    status = cluster.status(cluster.wait_for_leader())
    assert status is not None
    return status["accounts"], status["bindings"]


def can_register(cluster: Sandbox, user: str) -> bool:
    phone = UserAgent(user, (cluster.virtual_address, 5060), host=f"{PREFIX}.100")
    with closing(phone):
        phone.register()
    return True


def test_opensips_comes_from_a_dump_and_from_a_mariadb_that_runs(cluster: Sandbox, tmp_path: Path) -> None:
    expires = int(time.time()) + 86_400
    phones = (
        (n, f"o{n}", DOMAIN, f"sip:o{n}@10.0.0.1:5060;line='x'", f"sip:192.0.2.1:{10_000 + n}", None, expires, 1.0,
         f"call-{n}", n, 0, "NAT", "phone\\1", "udp:192.0.2.10:5060", 35, None, None)
        for n in range(PHONES)
    )  # fmt: skip
    accounts, bindings = counts(cluster)
    with databases.mariadb(tmp_path / "mariadb") as socket:
        connection = pymysql.connect(unix_socket=str(socket), user="root", database="sip")
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(_SUBSCRIBER.format(more="ha1_sha256 VARCHAR(64) NOT NULL"))
            cursor.execute(_OPENSIPS)
            cursor.executemany("INSERT INTO subscriber VALUES (%s, %s, %s, %s, %s, %s)", list(subscribers("o")))
            cursor.executemany(f"INSERT INTO location VALUES ({', '.join(['%s'] * 17)})", list(phones))
            connection.commit()
        databases.dump(socket, tmp_path / "opensips.sql")
        made = imports(cluster, "opensips", str(tmp_path / "opensips.sql"))
        assert made["accounts"] == {"made": SUBSCRIBERS, "here": 0, "expired": 0, "refused": 0}
        assert (
            made["bindings"]["made"] + made["bindings"]["here"] == PHONES
        )  # here is what was made when no answer came
        again = imports(cluster, "opensips", f"mysql://root@localhost/sip?unix_socket={socket}")
    assert again["accounts"] == {"made": 0, "here": SUBSCRIBERS, "expired": 0, "refused": 0}
    assert again["bindings"] == {"made": 0, "here": PHONES, "expired": 0, "refused": 0}
    assert counts(cluster) == (accounts + SUBSCRIBERS, bindings + PHONES)
    found = cluster.request(cluster.nodes[0], "GET", f"/v1/bindings/o7@{DOMAIN}")["bindings"]
    (binding,) = found
    assert (binding["contact"], binding["user_agent"]) == ("sip:o7@10.0.0.1:5060;line='x'", "phone\\1")
    assert 80_000 < binding["expires"] <= 86_400
    assert can_register(cluster, "o2")  # its password was plain
    assert can_register(cluster, "o3")  # of which there was only the hash
    wait_until(lambda: agree(cluster), "the nodes to agree")


def test_kamailio_comes_from_a_postgresql_that_runs(cluster: Sandbox) -> None:
    expires = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + 600))
    phones = (
        (n, f"uloc-{n}", f"k{n}", DOMAIN, f"sip:k{n}@192.0.2.2:{10_000 + n}", None, expires, -1.0, f"call-{n}", n, 0, 0,
         "phone", "udp:192.0.2.10:5060", 8191, None, 0)
        for n in range(PHONES)
    )  # fmt: skip
    accounts, bindings = counts(cluster)
    with databases.postgresql() as url:
        with psycopg.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(_SUBSCRIBER.format(more="ha1b VARCHAR(128) NOT NULL"))
            cursor.execute(_KAMAILIO)
            for table, rows in (("subscriber", subscribers("k")), ("location", phones)):
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
        made = imports(cluster, "kamailio", url)
        again = imports(cluster, "kamailio", url)
    assert made["accounts"] == {"made": SUBSCRIBERS, "here": 0, "expired": 0, "refused": 0}
    assert made["bindings"]["refused"] == 0
    assert again["accounts"] == {"made": 0, "here": SUBSCRIBERS, "expired": 0, "refused": 0}
    assert counts(cluster)[0] == accounts + SUBSCRIBERS
    assert counts(cluster)[1] > bindings
    assert can_register(cluster, "k2")
    assert can_register(cluster, "k3")
