"""The strings of the configuration that have a syntax of their own."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

from sipha.errors import MalformedMessage
from sipha.sip.flow import Address
from sipha.sip.uri import SipUri, parse_uri
from sipha.toml import Text
from sipha.vip.placement import Placement

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class IpAddress(Text):
    """An IPv4 or IPv6 literal, without brackets, in its canonical form."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the literal; raises ValueError."""
        try:
            return cls(ip_address(text))
        except ValueError:
            raise ValueError(
                f'{text!r} is not an IP address; write one such as "192.0.2.10" or "2001:db8::10"'
            ) from None


class VirtualIp(Text):
    """A virtual address, with the interface and network that it is placed in: `192.0.2.10` or `192.0.2.10%eth0/24`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the address; raises ValueError."""
        return cls(Placement.parse(text))

    @property
    def placement(self) -> Placement:
        """The address as a value."""
        return Placement.parse(self)


class SocketAddress(Text):
    """An IP address and a port: `192.0.2.10:7000` or `[2001:db8::10]:7000`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the address; raises ValueError."""
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            literal = ip_address(bare)
            if (literal.version == 6) != (bare != host) or not re.fullmatch(r"[0-9]{1,5}", port):
                raise ValueError  # noqa: TRY301
            if not 1 <= int(port) <= 65535:
                raise ValueError  # noqa: TRY301
        except ValueError:
            raise ValueError(
                f'{text!r} is not an IP address and port; write one such as "192.0.2.10:7000" or "[2001:db8::10]:7000"'
            ) from None
        return cls(f"[{literal}]:{int(port)}" if literal.version == 6 else f"{literal}:{int(port)}")

    @property
    def address(self) -> Address:
        """Host without brackets, and port."""
        host, _, port = self.rpartition(":")
        return host.strip("[]"), int(port)


class SipAddress(Text):
    """A SIP URI as it stands in From, or nothing."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the URI; raises ValueError."""
        if text and not _is_sip(text):
            raise ValueError(f'{text!r} is not a SIP URI; write one such as "sip:ping@sipha.test"')
        return cls(text)


class Network(Text):
    """An IP network in CIDR notation, or a single address."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the network; raises ValueError."""
        try:
            return cls(ip_network(text))
        except ValueError as error:
            right = 'write one such as "192.0.2.0/24", "2001:db8::/32" or "192.0.2.10"'
            if "host bits" in str(error):
                right = f'the network is "{ip_network(text, strict=False)}"'
            raise ValueError(f"{text!r} is not an IP network; {right}") from None

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The network as a value that tells whether an address is in it."""
        return ip_network(str(self))


class DomainName(Text):
    """A SIP domain, in lower case: a host name, or an IP literal (IPv6 in brackets, as in a URI)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the name; raises ValueError."""
        name = text.lower().removesuffix(".")
        if name.startswith("["):
            return cls(f"[{IpAddress.parse(name[1:].removesuffix(']'))}]")
        if not _DOMAIN.fullmatch(name):
            raise ValueError(f'{text!r} is not a domain; write a host name such as "sipha.test"')
        return cls(name)


class NodeName(Text):
    """The name of a node or a cluster, which can stand in a certificate: one label of a host name."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the name; raises ValueError."""
        if not _NODE.fullmatch(text):
            raise ValueError(
                f"{text!r} is not a name; write lower-case letters, digits and hyphens, no hyphen first or last, at "
                'most 63, such as "n1"'
            )
        return cls(text)


class PeerName(Text):
    """A name for the log: letters, digits, dot, hyphen and underscore, at most 63."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the name; raises ValueError."""
        if not _NAME.fullmatch(text):
            raise ValueError(f'{text!r} is not a name; write letters, digits, ".", "_" or "-", at most 63, such as "a"')
        return cls(text)


class ClientName(Text):
    """A name in the certificate of a client: a DNS name, a mail address, or a common name in ASCII without spaces."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the name; raises ValueError."""
        if not re.fullmatch(r"[!-~]{1,253}", text):
            raise ValueError(
                f'{text!r} is not a name in a certificate; write one such as "alice.operators.sipha.sipha"'
            )
        return cls(text)


class Sha256(Text):
    """A SHA-256, in hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the digits; raises ValueError, which doesn't repeat them: they may be the token itself."""
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            raise ValueError("must be the 64 hexadecimal digits that siphactl token shows, not the token itself")
        return cls(text.lower())

    @property
    def digest(self) -> bytes:
        """The bytes."""
        return bytes.fromhex(self)


class AdminUrl(Text):
    """The URL of a node's admin: `http://127.0.0.1:8080`, without a path; empty if there is none to be asked."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the URL; raises ValueError."""
        if not text:
            return cls()
        try:
            parts = urlsplit(text)
            plain = (
                parts.scheme in {"http", "https"} and parts.path in {"", "/"} and not parts.query and not parts.fragment
            )
            host = parts.hostname if plain and parts.username is None and parts.port != 0 else None
        except ValueError:
            host = None
        if not host:
            raise ValueError(f'{text!r} is not the URL of an admin; write one such as "http://127.0.0.1:8080"')
        return cls(text.removesuffix("/"))


class Duration(Text):
    """A time that is long: a whole number of days, hours, minutes or seconds, `30d`; or 0, for none."""

    __slots__ = ()

    _UNITS: ClassVar = {"d": 86400, "h": 3600, "m": 60, "s": 1}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the time; raises ValueError."""
        if not re.fullmatch(r"0|[1-9][0-9]{0,5}[dhms]", text):
            raise ValueError(f'{text!r} is not a time; write one such as "30d", "12h", "90m" or "600s", or "0"')
        return cls(text)

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return 0.0 if self == "0" else float(int(self[:-1]) * self._UNITS[self[-1]])


class AbsolutePath(Text):
    """The absolute path of a file or directory."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the path; raises ValueError."""
        if not text.startswith("/") or "\0" in text:
            raise ValueError(f'{text!r} is not an absolute path; write one such as "/var/lib/sipha"')
        return cls(text)

    @property
    def path(self) -> Path:
        """The path as a value."""
        return Path(self)


class FilePath(AbsolutePath):
    """The absolute path of a file; empty if there is none."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the path; raises ValueError."""
        return super().parse(text) if text else cls()


def _is_sip(text: str) -> bool:
    try:
        uri = parse_uri(text)
    except MalformedMessage:
        return False
    return isinstance(uri, SipUri) and not uri.headers
