"""Which urls and addresses images may come from. Decisions only: nothing here connects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.errors import UsageError
from banana_batch.images.classify import AddressBlocked
from banana_batch.images.download import guarded_socket
from banana_batch.images.guard import Allowed, AllowedHost, Blocked, UrlRules, is_public, parse_allow_host

VENDOR = UrlRules("https://api.ttapi.org")
NEAR = UrlRules("http://127.0.0.1:8787")

PRIVATE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.0.0.2", "169.254.169.254", "172.16.0.1", "192.0.0.1",
    "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::c000:c0", "::", "::1", "::7f00:1", "::ffff:127.0.0.2", "::ffff:10.0.0.1", "::ffff:0:7f00:1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "64:ff9b:1:7f00:0:100::", "64:ff9b:1:1:2:3:4:5",
    "2002:7f00:1::", "2002:808:808::", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1",
    "100::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1", "4000::1",
    "not an address", "",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::808:808", "64:ff9b:1:808:8:800::",
          "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_no_connect_leaves_for_a_private_address(address: str) -> None:
    """The socket is refused before it exists, whatever name led to it."""
    assert not is_public(address)
    with pytest.raises(AddressBlocked):
        guarded_socket((2, 1, 6, "", (address, 443)))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_asked(address: str) -> None:
    """NAT64 and mapped forms of public addresses are normal on IPv6-only networks."""
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_itself(inner: object) -> None:
    """Mapped and NAT64 spellings never change the decision."""
    plain = is_public(str(inner))
    assert is_public(f"::ffff:{inner}") == plain
    assert is_public(f"64:ff9b::{inner}") == plain


FORBIDDEN = [
    "", " ", "not a url", "/relative", "//cdn.ttapi.io/a.png", "http://cdn.ttapi.io/a.png", "ftp://cdn.ttapi.io/a.png",
    "file:///etc/passwd", "data:image/png;base64,AAAA", "gopher://cdn.ttapi.io/", "https:///a.png", "https://",
    "https://user@cdn.ttapi.io/a.png", "https://user:pw@cdn.ttapi.io/a.png", "https://@cdn.ttapi.io/a.png",
    "https://cdn.ttapi.io:8443/a.png", "https://cdn.ttapi.io:0/a.png", "https://cdn.ttapi.io:99999/a.png",
    "https://127.0.0.1/a.png", "https://127.1/a.png", "https://0x7f.1/a.png", "https://2130706433/a.png",
    "https://0177.0.0.1/a.png", "https://１２７.0.0.1/a.png", "https://127。0。0。1/a.png", "https://127.0.0.1./a.png",
    "https://[::1]/a.png", "https://[::ffff:127.0.0.2]/a.png", "https://[fe80::1%25eth0]/a.png", "https://[::]/",
    "https://169.254.169.254/latest/meta-data/", "https://[64:ff9b::7f00:1]/a.png", "https://10.0.0.1/a.png",
    "https://exa mple.com/", "https://cdn.ttapi.io%00.evil/", "https://%31%32%37.0.0.1/", "https://cdn.ttapi.io\\@evil/",
    "https://0/", "https://0.0.0.0/", "https://[2002:7f00:1::]/", "https://192.168.0.1:443/",
    "javascript:alert(1)", "https://[::1", "\ud800", "https://\ud800/",
    "https://cdn..example.com/x.png", f"https://{'a' * 64}.com/x.png", f"https://{'a.' * 127}com/x.png",
]  # fmt: skip


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_forbidden_url_is_refused_with_a_reason(url: str) -> None:
    """https, port 443, a host, no user name, no private literal in any spelling."""
    verdict = VENDOR.judge(url)
    assert isinstance(verdict, Blocked)
    assert verdict.reason


@pytest.mark.parametrize(
    "url",
    ["https://cdn.ttapi.io/other/2025-09-10/8b46.png", "HTTPS://CDN.TTAPI.IO:443/a.png", "https://1.1.1.1/a.png",
     " https://cdn.ttapi.io/a.png\n", "https://cdn.ttapi.io./a.png", "https://bücher.example/a.png",
     "https://[2606:4700::1111]/a.png"],
)  # fmt: skip
def test_a_public_https_url_may_be_fetched_under_guard(url: str) -> None:
    """Any public host: the vendor's change. Each connect's address is judged again."""
    verdict = VENDOR.judge(url)
    assert isinstance(verdict, Allowed)
    assert verdict.guarded


def test_a_signed_url_is_sent_to_the_letter() -> None:
    """A host's signature covers the very bytes of path and query."""
    verdict = VENDOR.judge("https://cdn.ttapi.io/a%2Fb.png?X-Sig=%2B%7e%3d&x=a+b")
    assert isinstance(verdict, Allowed)
    assert verdict.url.raw_path_qs == "/a%2Fb.png?X-Sig=%2B%7e%3d&x=a+b"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8788/a.png", "http://127.0.0.2:8787/a.png", "http://localhost:8787/a.png",
     "https://127.0.0.1:8787/a.png", "http://u@127.0.0.1:8787/a.png", "http://127.0.0.1/a.png",
     "http://[::ffff:127.0.0.1]:8787/", "http://cdn.ttapi.io/a.png"],
)  # fmt: skip
def test_a_gateway_on_loopback_opens_its_own_origin_only(url: str) -> None:
    """Scheme, host and port must all be the gateway's."""
    assert isinstance(NEAR.judge("http://127.0.0.1:8787/images/a.png"), Allowed)
    assert isinstance(NEAR.judge(url), Blocked)


def test_a_public_gateway_opens_nothing() -> None:
    """Its own origin is judged like any other."""
    assert isinstance(UrlRules("https://10.0.0.1:8443").judge("https://10.0.0.1:8443/a.png"), Blocked)


def test_a_refused_host_can_be_allowed_as_the_message_says() -> None:
    """The words that the message gives are the words that let it through."""
    for url in ("https://10.0.0.1/a.png", "https://cdn.example:8443/a.png", "https://[fd00::1]:9000/a.png"):
        verdict = VENDOR.judge(url)
        assert isinstance(verdict, Blocked)
        assert verdict.allow is not None
        allowed = UrlRules("https://api.ttapi.org", [verdict.allow]).judge(url)
        assert isinstance(allowed, Allowed)
        assert not allowed.guarded


def test_an_allowed_host_still_needs_https() -> None:
    """`--allow-host` opens addresses and ports, never plain http."""
    rules = UrlRules("https://api.ttapi.org", ["cdn.example"])
    assert isinstance(rules.judge("http://cdn.example/a.png"), Blocked)
    assert isinstance(rules.judge("https://cdn.example:9999/a.png"), Allowed)
    assert isinstance(rules.judge("https://evil.cdn.example:9999/a.png"), Blocked)
    assert isinstance(rules.judge("https://u:p@cdn.example/a.png"), Blocked)


def test_an_allowed_port_allows_no_other() -> None:
    """`HOST:PORT` is that port, and what any public host may do."""
    rules = UrlRules("https://api.ttapi.org", ["cdn.example:8443"])
    assert isinstance(rules.judge("https://cdn.example:8443/a.png"), Allowed)
    assert isinstance(rules.judge("https://cdn.example:8444/a.png"), Blocked)
    plain = rules.judge("https://cdn.example/a.png")
    assert isinstance(plain, Allowed)
    assert plain.guarded


def test_an_allowed_host_is_read_in_every_spelling() -> None:
    """Case, brackets and a bare IPv6 literal."""
    assert parse_allow_host("CDN.Example") == AllowedHost("cdn.example", None)
    assert parse_allow_host("cdn.example:8443") == AllowedHost("cdn.example", 8443)
    assert parse_allow_host("::1") == AllowedHost("::1", None)
    assert parse_allow_host("[0:0::1]:8443") == AllowedHost("::1", 8443)


@pytest.mark.parametrize("text", ["", "https://cdn.example", "cdn.example/", "u@cdn.example", "a b", "h:0", "h:x", "*"])
def test_an_allow_host_that_is_none_is_a_usage_error(text: str) -> None:
    """A typing error must not silently allow nothing, or everything."""
    with pytest.raises(UsageError):
        parse_allow_host(text)


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "printer.local", "db.internal", "router", "nas.home.arpa"]
)
def test_through_a_proxy_private_names_are_refused(host: str) -> None:
    """The proxy resolves, so the name is all there is to judge."""
    proxied = UrlRules("https://api.ttapi.org", proxied=True)
    assert isinstance(proxied.judge(f"https://{host}/a.png"), Blocked)
    assert isinstance(proxied.judge("https://0x7f.1/a.png"), Blocked)
    assert isinstance(proxied.judge("https://cdn.ttapi.io/a.png"), Allowed)


def test_each_redirect_is_judged_again() -> None:
    """Relative ones stay on the host; others must be allowed themselves."""
    start = VENDOR.judge("https://cdn.ttapi.io/a/b.png")
    assert isinstance(start, Allowed)
    hop = VENDOR.judge_redirect(start.url, "../c.png")
    assert isinstance(hop, Allowed)
    assert str(hop.url) == "https://cdn.ttapi.io/c.png"
    for bad in (
        "http://cdn.ttapi.io/c.png",
        "//127.0.0.1/c.png",
        "https://169.254.169.254/",
        "https://[::1",
        "ftp://x/",
    ):
        assert isinstance(VENDOR.judge_redirect(start.url, bad), Blocked)


@given(st.text(max_size=60))
def test_any_text_gets_a_decision(text: str) -> None:
    """A url is any text at all; none of them crashes the guard or opens it."""
    for url in (text, f"https://{text}", f"https://{text}/a.png"):
        verdict = NEAR.judge(url)
        assert isinstance(verdict, Blocked) or (verdict.guarded and verdict.url.scheme == "https")
