"""Which bindings are wanted: what a support desk asks for, and the bindings that it finds."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from msgspec import UNSET

from sipha.admin.messages import Refusal
from sipha.admin.queries import Filter
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage
from sipha.sip.uri import SipUri, parse_uri
from sipha.state.binding import Binding

_Test = Callable[[Binding], bool]


class Choice:
    """A filter, made ready: `prefix` is that of the AORs, and `matches` says whether a binding of one is wanted."""

    def __init__(self, wanted: Filter, domains: Domains) -> None:
        """Raise Refusal for a domain or address that can't be."""
        self.prefix = "sip:" + wanted.prefix.removeprefix("sip:")
        self._tests = tuple(_tests(wanted, domains))

    @property
    def everything(self) -> bool:
        """True if every binding of an AOR with the prefix is wanted."""
        return not self._tests

    def matches(self, binding: Binding) -> bool:
        """True if a binding is wanted, as far as that isn't a matter of the prefix."""
        return all(test(binding) for test in self._tests)


def _tests(wanted: Filter, domains: Domains) -> list[_Test]:
    tests: list[_Test] = []
    if wanted.domain:
        domain = domains.named(wanted.domain)
        if domain is None:
            raise Refusal(400, f"{wanted.domain[:80]!r} is not a domain of this node")
        ending = f"@{domain.name.lower()}"
        tests.append(lambda binding: binding.aor.endswith(ending))
    if wanted.behind_nat is not UNSET:
        tests.append(lambda binding: binding.behind_nat is wanted.behind_nat)
    if wanted.transport:
        tests.append(lambda binding: _transport(binding) == wanted.transport)
    if wanted.call_id:
        tests.append(lambda binding: binding.call_id == wanted.call_id)
    for part, read in (
        (wanted.user_agent, lambda binding: binding.user_agent),
        (wanted.contact, lambda binding: binding.contact),
        (wanted.instance, lambda binding: binding.instance),
    ):
        if part:
            tests.append(_contains(part.casefold(), read))
    if wanted.address:
        tests.append(_is_in(_network(wanted.address)))
    return tests


def _contains(part: str, read: Callable[[Binding], str]) -> _Test:
    return lambda binding: part in read(binding).casefold()


def _is_in(network: IPv4Network | IPv6Network) -> _Test:
    def test(binding: Binding) -> bool:
        uri = _uri(binding)
        if uri is None:
            return False
        try:
            return ip_address(uri.host.strip("[]")) in network
        except ValueError:  # a name
            return False

    return test


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise Refusal(
            400, f"{text[:80]!r} is not an IP address or network, such as 192.0.2.7 or 192.0.2.0/24"
        ) from error


def _uri(binding: Binding) -> SipUri | None:
    """Where requests to the phone are sent: from where it has registered, or else its contact."""
    try:
        uri = parse_uri(binding.received or binding.contact)
    except MalformedMessage:
        return None
    return uri if isinstance(uri, SipUri) else None


def _transport(binding: Binding) -> str:
    if binding.socket:
        return binding.socket.partition(":")[0]
    uri = _uri(binding)
    return ((uri and uri.param("transport")) or "udp").lower()
