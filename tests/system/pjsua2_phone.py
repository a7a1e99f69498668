"""A softphone on pjsua2, in a process of its own: commands on standard input, events as JSON lines on standard output.

Commands: `dial URI`, `hangup`, `quit`. Events: registered (code), incoming, call (state, code).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys

import pjsua2

TRANSPORTS = {"udp": pjsua2.PJSIP_TRANSPORT_UDP, "tcp": pjsua2.PJSIP_TRANSPORT_TCP}


def tell(event: str, **details: object) -> None:
    """Write an event."""
    print(json.dumps({"event": event, **details}), flush=True)


class Call(pjsua2.Call):
    """A call that tells its states."""

    def onCallState(self, _param: object) -> None:
        info = self.getInfo()
        tell("call", state=info.stateText, code=info.lastStatusCode)


class Account(pjsua2.Account):
    """An account that answers every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def onRegState(self, param: object) -> None:
        tell("registered", code=param.code)  # type: ignore[attr-defined]

    def onIncomingCall(self, param: object) -> None:
        call = Call(self, param.callId)  # type: ignore[attr-defined]
        self.calls.append(call)
        tell("incoming")
        answer = pjsua2.CallOpParam()
        answer.statusCode = 200
        call.answer(answer)


def main() -> None:
    """Run the phone until it is told to quit or its input ends."""
    parser = argparse.ArgumentParser()
    for name in ("user", "password", "domain", "server", "transport", "bind"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()

    endpoint = pjsua2.Endpoint()
    endpoint.libCreate()
    config = pjsua2.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = int(os.environ.get("PJSUA2_LOG", "0"))
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = True
    endpoint.libInit(config)
    transport = pjsua2.TransportConfig()
    transport.boundAddress = options.bind
    endpoint.transportCreate(TRANSPORTS[options.transport], transport)
    endpoint.libStart()
    endpoint.audDevManager().setNullDev()

    account_config = pjsua2.AccountConfig()
    account_config.idUri = f"sip:{options.user}@{options.domain}"
    account_config.regConfig.registrarUri = f"sip:{options.domain}"
    account_config.regConfig.timeoutSec = 300
    account_config.sipConfig.authCreds.append(pjsua2.AuthCredInfo("digest", "*", options.user, 0, options.password))
    account_config.sipConfig.proxies.append(f"sip:{options.server};transport={options.transport};lr")
    account = Account()
    account.create(account_config)

    running = True
    while running:
        endpoint.libHandleEvents(20)
        if not select.select([sys.stdin], [], [], 0)[0]:
            continue
        command, _, argument = sys.stdin.readline().strip().partition(" ")
        if command == "dial":
            call = Call(account)
            account.calls.append(call)
            call.makeCall(argument, pjsua2.CallOpParam(True))
        elif command == "hangup":
            for call in account.calls:
                if call.isActive():
                    call.hangup(pjsua2.CallOpParam())
        else:
            running = False
    # pjsua2's own teardown joins threads that Python has already stopped: leave without it.
    os._exit(0)


if __name__ == "__main__":
    main()
