"""Where an image may come from: urls, and the socket addresses behind them.

Rule 1: decisions only: nothing is resolved or connected here.
Rule 2: https to a public address on port 443. Anything else is the user's word (`--allow-host`), or the
        gateway's own origin while the gateway is on loopback (sandbox, tests).
Rule 3: the url that is judged is the very object that is fetched, never a second parse of the same text.
Rule 4: a name says nothing about its address, so each connect is judged again by its socket address
        (download.py): literals, redirects, rebinding and odd spellings are all covered by `is_public`.
"""

import re
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from msgspec import Struct
from yarl import URL

from banana_batch.addresses import is_loopback
from banana_batch.errors import UsageError
from banana_batch.text import printable

HTTPS_PORT = 443
MAX_SHOWN_CHARS = 120  # of a url in a message
MAX_KNOWN = 64  # places that were judged

_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Python calls these global: Teredo and 6to4 carry an IPv4 address past the check, 3fff::/20 is documentation.
_UNSAFE_V6 = tuple(IPv6Network(text) for text in ("2001::/32", "2002::/16", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215
# Of IPv4: 6to4 relays; protocol assignments, where a cloud keeps its metadata (192.0.0.192); Azure's own service for
# each machine, which has a public number.
_UNSAFE_V4 = tuple(IPv4Network(text) for text in ("192.88.99.0/24", "192.0.0.0/24", "168.63.129.16/32"))

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", re.ASCII)
# RFC 1035; a resolver refuses others with errors of its own.
_MAX_NAME, _MAX_LABEL = 253, 63
# What is sent as it stands, so that a signed url keeps its signature.
_VERBATIM = re.compile(r"[\x21-\x7e]+", re.ASCII)
_PRIVATE_NAME = re.compile(r"(?:.*\.)?(?:localhost|local|internal|lan|home\.arpa)|[^.]*")


class Blocked(Struct, frozen=True):
    """A url that may not be fetched.

    Attributes:
        reason: What is wrong with it, printable.
        allow: What to hand to `--allow-host` to let it through; None: nothing lets it through.
    """

    reason: str
    allow: str | None = None


class Allowed(Struct, frozen=True):
    """A url that may be fetched.

    Attributes:
        guarded: Each connect's address must be public. False: the user, or the loopback rule, vouches for the host.
    """

    url: URL
    guarded: bool


class AllowedHost(Struct, frozen=True):
    """One `--allow-host`. `port` None: any port."""

    host: str
    port: int | None


def is_public(address: str) -> bool:
    """Tell whether a socket's address is on the public internet.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged itself: NAT64 is normal on IPv6-only networks.
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        inner = _inner_v4(ip)
        if inner is None:
            return ip in _GLOBAL_UNICAST and ip.is_global and not any(ip in network for network in _UNSAFE_V6)
        ip = inner
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _UNSAFE_V4)


def _inner_v4(ip: IPv6Address) -> IPv4Address | None:
    bits = int(ip)
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _NAT64:
        return IPv4Address(bits & 0xFFFFFFFF)
    if ip in _NAT64_LOCAL:
        middle = bits >> 32 & 0xFFFFFFFFFFFF
        if middle == 0:  # translator with a /96 prefix
            return IPv4Address(bits & 0xFFFFFFFF)
        # RFC 6052, /48 prefix: 16 bits, a zero byte, 16 bits. Longer prefixes can't be told apart: loopback is refused.
        plain = bits >> 56 & 0xFF == 0 and bits & 0xFFFFFFFFFF == 0
        return IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF) if plain else IPv4Address("127.0.0.1")
    return None


def parse_allow_host(text: str) -> AllowedHost:
    """Read `HOST` or `HOST:PORT`; an IPv6 literal may stand in brackets or, without a port, bare.

    Raises:
        UsageError: it is neither.
    """
    bare = text.strip()
    if bare.count(":") > 1 and not bare.startswith("["):
        bare = f"[{bare}]"
    try:
        url = URL(f"https://{bare}/")
        host = _host_of(url)
        plain = url.raw_path == "/" and url.user is None and url.password is None and not url.query_string
    except ValueError:
        host, plain = None, False
    if host is None or not plain or url.explicit_port == 0:
        raise UsageError(f"--allow-host: {printable(text, 120)!r} → HOST or HOST:PORT, such as cdn.example.com:8443")
    return AllowedHost(host, url.explicit_port)


class UrlRules:
    """The rules of one run.

    Args:
        gateway: `--base-url`; images may come from its origin if it is on loopback.
        allow_hosts: Each `--allow-host`.
        proxied: Connects go to a proxy, so that only the literal and the name can be judged here.
        redact: Removes secrets from what is told of a url, before it is cut.

    Raises:
        UsageError: an `--allow-host` that can't be read.
    """

    def __init__(
        self,
        gateway: str,
        allow_hosts: Iterable[str] = (),
        *,
        proxied: bool = False,
        redact: Callable[[str], str] = str,
    ) -> None:
        origin = URL(gateway)
        near = origin.host is not None and is_loopback(origin.host)
        self._origin = (origin.scheme, _host_of(origin), origin.port) if near else None
        self._allowed = tuple(parse_allow_host(text) for text in allow_hosts)
        self._proxied = proxied
        self._redact = redact
        # A verdict says nothing of path and query: places that may be asked, and whether with a guard.
        self._known: dict[tuple[str, str], bool] = {}

    def judge(self, text: str) -> Allowed | Blocked:
        """Decide on a url as the endpoint named it: any text at all."""
        stripped = text.strip()
        try:
            return self._judge(URL(stripped, encoded=_VERBATIM.fullmatch(stripped) is not None))
        except ValueError:
            return Blocked(f"{self._shown(text)} is no url")

    def judge_redirect(self, from_url: URL, location: str) -> Allowed | Blocked:
        """Decide on the next hop; `location` may be relative."""
        try:
            target = URL(location, encoded=_VERBATIM.fullmatch(location) is not None)
            return self._judge(target if target.absolute else from_url.join(target))
        except ValueError:
            return Blocked(f"it redirects to {self._shown(location)}, which is no url")

    def _judge(self, url: URL) -> Allowed | Blocked:
        place = (url.scheme, url.raw_authority)
        guarded = self._known.get(place)
        if guarded is not None:
            return Allowed(url, guarded)
        verdict = self._judge_place(url)
        if isinstance(verdict, Allowed):
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[place] = verdict.guarded
        return verdict

    def _judge_place(self, url: URL) -> Allowed | Blocked:
        host = _host_of(url)
        fault = _malformed(url, host)
        if host is None or fault is not None:
            return Blocked(f"{self._shown(str(url))} {fault}")
        origin = (url.scheme, host, url.port)
        if origin == self._origin:
            return Allowed(url, guarded=False)
        if url.scheme != "https":
            return Blocked(f"{self._shown(str(url))} is not https")
        if any(rule.host == host and rule.port in (None, url.port) for rule in self._allowed):
            return Allowed(url, guarded=False)
        fault = self._unfit(host, url.port)
        if fault is None:
            return Allowed(url, guarded=True)
        return Blocked(f"{self._shown(str(url))} {fault}", self._redact(allow_text(host, url.port)))

    def _shown(self, url: str) -> str:
        return repr(printable(self._redact(url), MAX_SHOWN_CHARS))

    def _unfit(self, host: str, port: int | None) -> str | None:
        """Return why a host that nobody vouches for may not be asked; None if it may."""
        if port != HTTPS_PORT:
            return f"is on port {port}, not {HTTPS_PORT}"
        literal = _literal(host)
        if literal is not None:
            return None if is_public(literal) else f"is at {literal}, which is not a public address"
        return "is on a private name" if self._proxied and _PRIVATE_NAME.fullmatch(host) else None


def _malformed(url: URL, host: str | None) -> str | None:
    if host is None:
        return "names no host"
    if url.user is not None or url.password is not None or "@" in url.raw_authority:
        return "carries a user name"
    return None


def allow_text(host: str, port: int | None) -> str:
    """Return what to hand to `--allow-host`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_of(url: URL) -> str | None:
    """Return the host in lower case without trailing dot, IPv6 compressed; None if there is none that can be told."""
    host = url.host
    if not host:
        return None
    if ":" in host:
        zone = host.partition("%")[2]
        try:
            return str(ip_address(host)) if _HOST.fullmatch(zone.lower() or "x") else None
        except ValueError:
            return None
    name = (url.raw_host or "").lower().rstrip(".")
    labels = name.split(".")
    fits = len(name) <= _MAX_NAME and all(0 < len(label) <= _MAX_LABEL for label in labels)
    return name if fits and _HOST.fullmatch(name) else None


@lru_cache(maxsize=256)
def _literal(host: str) -> str | None:
    """Return the address that a host spells out, in any form that a resolver takes (`127.1`, `0x7f.1`); else None."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
