"""Real softphones, driven by tests: each registers at once, answers every call, and tells its events."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PATIENCE = 20.0
"""How long a phone may take for anything, in seconds."""


@dataclass(frozen=True)
class Line:
    """What a phone needs to register: its account, the server, the transport and the address it binds."""

    user: str
    password: str
    domain: str
    server: str
    transport: str
    bind: str


class Phone(Protocol):
    """A phone that can call and hang up."""

    def dial(self, uri: str) -> None: ...
    def hangup(self) -> None: ...
    def wait_for(self, event: str) -> None: ...
    def close(self) -> None: ...


class Events:
    """The events of a phone, in order: registered, incoming, established, closed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.Queue[str] = queue.Queue()
        self._seen: list[str] = []

    def put(self, event: str) -> None:
        self._queue.put(event)

    def wait_for(self, event: str) -> None:
        """Wait for an event, passing over others; raises AssertionError that tells what came instead."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                seen = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self._name} waited for {event!r} in vain; it saw {self._seen}") from None
            self._seen.append(seen)
            if seen == event:
                return


class Pjsua2Phone:
    """The pjsua2 stack, run by pjsua2_phone.py in a process of its own."""

    _CALL_STATES = {"CONFIRMED": "established", "DISCONNCTD": "closed", "DISCONNECTED": "closed"}  # noqa: RUF012

    def __init__(self, line: Line) -> None:
        self.user = line.user
        self._events = Events(f"pjsua2 {line.user}")
        script = Path(__file__).with_name("pjsua2_phone.py")
        options = [f"--{name}={value}" for name, value in vars(line).items()]
        self._process = subprocess.Popen(
            [sys.executable, str(script), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if not text.startswith("{"):
                continue  # the stack writes a line of its own when it starts
            event = json.loads(text)
            if event["event"] == "registered":
                self._events.put("registered" if event["code"] == 200 else f"refused {event['code']}")
            elif event["event"] == "incoming":
                self._events.put("incoming")
            else:
                self._events.put(self._CALL_STATES.get(event["state"], f"{event['state']} {event['code']}"))

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def dial(self, uri: str) -> None:
        self._say(f"dial {uri}")

    def hangup(self) -> None:
        self._say("hangup")

    def wait_for(self, event: str) -> None:
        self._events.wait_for(event)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


class BaresipPhone:
    """baresip, told what to do through its ctrl_tcp module (JSON in netstrings)."""

    _TYPES = {  # noqa: RUF012
        "REGISTER_OK": "registered",
        "REGISTER_FAIL": "refused",
        "CALL_INCOMING": "incoming",
        "CALL_ESTABLISHED": "established",
        "CALL_CLOSED": "closed",
    }
    _CONFIG = """\
sip_listen {bind}:{port}
call_local_timeout 30
call_max_calls 4
audio_player aubridge,x
audio_source aubridge,x
audio_alert aubridge,x
module_path /usr/lib/baresip/modules
module g711.so
module aubridge.so
module_tmp uuid.so
module_tmp account.so
module_app auloop.so
module_app contact.so
module_app menu.so
module ctrl_tcp.so
ctrl_tcp_listen {bind}:{control}
"""

    def __init__(self, line: Line) -> None:
        self.user = line.user
        self._events = Events(f"baresip {line.user}")
        self._directory = Path(tempfile.mkdtemp(prefix="baresip-"))
        control = 4444
        self._directory.joinpath("config").write_text(self._CONFIG.format(bind=line.bind, port=5070, control=control))
        self._directory.joinpath("accounts").write_text(
            f"<sip:{line.user}@{line.domain};transport={line.transport}>;auth_user={line.user};auth_pass={line.password};"
            f'outbound="sip:{line.server}:5060;transport={line.transport}";regint=300;answermode=auto\n'
        )
        self._directory.joinpath("contacts").touch()
        self._process = subprocess.Popen(
            ["baresip", "-f", str(self._directory)],
            stdin=subprocess.DEVNULL,
            stdout=self._directory.joinpath("log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self._control = self._connect((line.bind, control))
        threading.Thread(target=self._read, daemon=True).start()

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return socket.create_connection(address, timeout=PATIENCE)
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log = self._directory.joinpath("log").read_text(errors="replace")
                    raise AssertionError(f"baresip doesn't listen: {log}") from None
                time.sleep(0.05)

    def _read(self) -> None:
        stream = self._control.makefile("rb")
        self._control.settimeout(None)
        try:
            while (length := _netstring_length(stream.read)) is not None:
                message = json.loads(stream.read(length + 1)[:-1])
                if message.get("event"):
                    self._events.put(self._TYPES.get(message["type"], message["type"]))
        except OSError:
            return  # closed by close()

    def _say(self, command: str, parameters: str = "") -> None:
        text = json.dumps({"command": command, "params": parameters}).encode()
        self._control.sendall(b"%d:%b," % (len(text), text))

    def dial(self, uri: str) -> None:
        self._say("dial", uri)

    def hangup(self) -> None:
        self._say("hangup")

    def wait_for(self, event: str) -> None:
        self._events.wait_for(event)

    def close(self) -> None:
        """End the process and remove its directory."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._control.close()
        shutil.rmtree(self._directory)


def _netstring_length(read: object) -> int | None:
    digits = b""
    while (character := read(1)) not in {b":", b""}:  # type: ignore[operator]
        digits += character
    return int(digits) if character else None
