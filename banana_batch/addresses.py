"""What an address means."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Tell whether a host name or literal means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
