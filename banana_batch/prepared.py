"""A batch that is ready to run, and what is remembered in it of how it was begun."""

import sqlite3

from msgspec import Struct, field

from .errors import Problem
from .store.difference import Difference

SIDE, SANDBOX_PORT, FINGERPRINT, ALLOWED_HOSTS, BASE_URL = (
    "side",
    "sandbox_port",
    "fingerprint",
    "allow_host",
    "base_url",
)
IN_SANDBOX, LIVE = "sandbox", "live"


class Prepared(Struct):
    """A batch whose manifest is staged and understood.

    Attributes:
        fresh: There was no batch in the folder before.
        unchanged: The manifest is, byte for byte, the one that the batch took last: it was not read again.
        lock: The descriptor that holds the batch; None where it is only looked at.
    """

    db: sqlite3.Connection
    difference: Difference
    warnings: list[Problem] = field(default_factory=list)
    fresh: bool = False
    unchanged: bool = False
    lock: int | None = None
