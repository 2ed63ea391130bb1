"""How a process of our own is loaded: what every module loaded there costs, later and now."""

import contextlib
import gc
import os
import resource
import sys
from collections.abc import Iterator

# Where the user says that the system's certificates are; OpenSSL reads them.
CERTIFICATE_PLACES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

_PIECE_BYTES = 512  # with what Python adds; the largest that it has from its own arenas of 1 MiB
_kept: list[bytes] = []


def leave_no_core() -> None:
    """Let no core dump be written of this process, and of what it starts: it would hold the key (safety.md, S3)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_what_is_loaded() -> None:
    """Let the collector never look at modules again, and seldom at the rest: a tenth of a run's time.

    Thousands of calls in flight are many objects and hardly a cycle: by default an eighth of the time goes into
    looking for some.
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    gc.enable()


def take_memory_ahead(taken_bytes: int) -> None:
    """Have now what the small objects of a run will need, not bit by bit during its first minutes.

    They come in bursts, and how high the bursts ever came rises for half a minute at full speed, a pool of 16 KiB at a
    time: no leak, and not to be told from one.

    Args:
        taken_bytes: What is reached anyway: it is used up, not added to what is.
    """
    pieces = [bytes(_PIECE_BYTES - sys.getsizeof(b"")) for _ in range(taken_bytes // _PIECE_BYTES)]
    _kept.extend(pieces[::1024])  # an arena in which nothing is left would be given back


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Let what is loaded meanwhile find neither certificates nor plugins. For a process with one thread.

    aiohttp makes two TLS contexts when it is imported, for whoever hands it none. Here each route is handed
    `tls_context`, where it has TLS at all; reading the system's certificates for the others is 45 ms of a start,
    measured. pydantic looks through every package that is installed for plugins, which see whatever is checked:
    nothing that a process with a key in it should wait for.
    """
    meanwhile = dict.fromkeys(CERTIFICATE_PLACES, os.devnull) | {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
    said = {name: os.environ.get(name) for name in meanwhile}
    os.environ.update(meanwhile)
    try:
        yield
    finally:
        for name, value in said.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
