"""A capture server that isn't ours takes the copies: sngrep decodes them, and tshark reads what that has understood."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sipha.sandbox import Sandbox
from tests.system.conftest import wait_until
from tests.system.nodes import started
from tests.system.ua import UserAgent

pytestmark = [pytest.mark.system, pytest.mark.long]

PREFIX = "127.0.42"
SERVER = f"{PREFIX}.99:9060"
KEY = "sesame"
FIELDS = ("frame.time_epoch", "ip.src", "udp.srcport", "ip.dst", "udp.dstport", "sip.Method", "sip.Status-Code")


@contextmanager
def capture_server(directory: Path, key: str) -> Iterator[Path]:
    """Have sngrep listen for copies with this key, and write the messages in them to a file, whole in the end."""
    (directory / "sngreprc").write_text(f"set eep.listen.pass {key}\n")
    pcap = directory / "messages.pcap"
    words = ("-N", "-q", "-f", str(directory / "sngreprc"), "-L", f"udp:{SERVER}", "-O", str(pcap))
    server = subprocess.Popen(["sngrep", *words], stdin=subprocess.DEVNULL)
    try:
        host, port = SERVER.split(":")
        wait_until(lambda: f"{host}:{port}" in listening(), "sngrep to listen")
        yield pcap
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(10)


def listening() -> str:
    return subprocess.run(
        ["ss", "--udp", "--listening", "--numeric"], capture_output=True, text=True, check=True
    ).stdout


def messages(pcap: Path, tag: str) -> list[list[str]]:
    """The fields of each message of a phone, by its tag, as tshark has them."""
    words = [word for field in FIELDS for word in ("-e", field)]
    command = ["tshark", "-r", str(pcap), "-Y", f'sip.Call-ID contains "{tag}"', "-T", "fields", *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split("\t") for line in output.splitlines()]


@pytest.mark.parametrize(("key", "taken"), [(KEY, True), ("other", False)])
def test_another_ones_capture_server_understands_the_copies(tmp_path: Path, key: str, taken: bool) -> None:
    if shutil.which("sngrep") is None or shutil.which("tshark") is None:
        pytest.skip("Debian's sngrep and tshark are not installed; make test-long installs them")
    extra = f'[capture]\nserver = "{SERVER}"\nkey = "{KEY}"'
    cluster = Sandbox(tmp_path / "cluster", prefix=PREFIX, size=1, extra=extra)
    with started(cluster, "alice"), capture_server(tmp_path, key) as pcap:
        phone = UserAgent("alice", (cluster.virtual_address, 5060), host=f"{PREFIX}.100")
        begin = time.time()
        phone.register()
        end = time.time()
        there, here = [phone.address[0], str(phone.address[1])], [cluster.virtual_address, "5060"]
        time.sleep(1.0)  # sngrep doesn't say what it has taken
        phone.close()
    found = messages(pcap, phone.tag) if pcap.exists() else []
    if not taken:
        assert found == []
        return
    assert [message[1:] for message in found] == [
        [*there, *here, "REGISTER", ""],
        [*here, *there, "", "401"],
        [*there, *here, "REGISTER", ""],
        [*here, *there, "", "200"],
    ]
    times = [float(message[0]) for message in found]
    assert times == sorted(times)
    assert begin - 0.01 <= times[0] <= times[-1] <= end + 0.01
