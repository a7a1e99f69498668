"""The user agent that the proxy is to requests for itself, not for one of its users (RFC 3261 §8.2, §11)."""

from __future__ import annotations

from sipha.errors import SipError
from sipha.sip.message import Request
from sipha.sip.token import Tokens

_ALLOW = ("Allow", "OPTIONS, REGISTER")
_CAPABILITIES = (_ALLOW, ("Accept", "application/sdp"), ("Supported", "path, outbound"))


def capabilities(request: Request) -> tuple[tuple[str, str], ...]:
    """The header fields of the 200 to an OPTIONS for us (§11.2); SipError for what else is asked of us."""
    if request.method != "OPTIONS":
        if request.to.tag is not None:
            raise SipError("we have no dialogs of our own", status=481)
        # "Methods that are not supported by the UAS: the UAS MUST generate a 405 [...] MUST also add an Allow header".
        raise SipError(f"{request.method} for the proxy itself", status=405, headers=(_ALLOW,))
    if required := request.headers.values("Require"):
        raise SipError(
            "an OPTIONS that requires an extension", status=420, headers=(("Unsupported", ", ".join(required)),)
        )
    return _CAPABILITIES


def refusal_tag(tokens: Tokens | None, request: Request) -> str:
    """The To tag of the refusal of a request in which only the Via is sure to be sound: the same for each copy."""
    if tokens is None:
        return "0"
    headers, via = request.headers, request.via
    cseq = headers.get("CSeq") or ""
    return tokens.tag(
        headers.get("Call-ID") or "", headers.get("From") or "", 0, f"{cseq}\n{via.branch or via.sent_by}"
    )
