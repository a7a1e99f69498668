"""What this proxy is responsible for: its domains and its own addresses (RFC 3261 §16.4, §16.5)."""

from __future__ import annotations

from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage
from sipha.proxy.interfaces import ITransport
from sipha.sip.uri import SipUri, Uri, parse_uri


class Responsibility:
    """Tells URIs that mean us or our users from all others."""

    def __init__(self, domains: Domains, transport: ITransport) -> None:
        self.domains = domains
        self._transport = transport

    def domain(self, uri: Uri) -> Domain | None:
        """The domain that a URI is in, None if not in one of ours; an address that we listen at is the default one."""
        # "If the Request-URI of the request contains an maddr parameter, the Request-URI MUST be placed into the target
        # set as the only target URI" (§16.5): it leads elsewhere, whatever its domain says.
        if not isinstance(uri, SipUri) or uri.has_param("maddr"):
            return None
        address = uri.address
        if address is None:
            return self.domains.find(uri.host)
        if self._transport.is_local(*address, uri.transport):
            return self.domains.default
        # Phones that know us by an address alone, such as that of a NAT before us, have a domain of that name.
        return self.domains.named(uri.host)

    def domain_of(self, text: str) -> Domain | None:
        """The same for a URI that isn't parsed yet; None if it is no URI."""
        try:
            return self.domain(parse_uri(text))
        except MalformedMessage:
            return None

    def aor(self, uri: Uri) -> str | None:
        """The AOR that a URI means, or None if it is none of ours; a tel: URI is looked for in the default domain."""
        if not isinstance(uri, SipUri):
            return self._aor_of_number(uri.rest) if uri.scheme == "tel" else None
        domain = self.domain(uri)
        located = None if domain is None else self.domains.locate(uri._replace(host=domain.name))
        return None if located is None else located[1]

    def aor_of(self, text: str) -> str | None:
        """The same for a URI that isn't parsed yet; None if it is no URI."""
        # A host that ends in a letter is a name, of which nothing but the domains has to be known.
        if text[-1:].isalpha() and (located := self.domains.locate_plain(text)):
            return located[1]
        try:
            return self.aor(parse_uri(text))
        except MalformedMessage:
            return None

    def _aor_of_number(self, subscriber: str) -> str | None:
        """The AOR of a tel: URI's number: without visual separators and parameters (RFC 3966 §4, §5)."""
        number = subscriber.partition(";")[0].translate({ord(separator): None for separator in "-.()"})
        located = self.domains.locate(SipUri("sip", number, None, self.domains.default.name, None))
        return None if located is None else located[1]
