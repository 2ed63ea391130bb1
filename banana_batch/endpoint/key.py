"""The key: where it comes from. How it is kept out of everything that is written is in secret.py.

Rule 1: its text goes into the header of the paid requests, and nowhere else out of this machine.
Rule 2: no option takes the key itself: command lines are public.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from banana_batch.errors import KeyRefused
from banana_batch.secret import Secret

KEY_VARIABLE = "TT_API_KEY"
CREDENTIAL_NAME = "ttapi_key"
MAX_KEY_BYTES = 4096

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


def load_key(key_file: Path | None, environ: Mapping[str, str]) -> Secret:
    """Return the key from `key_file`, else from systemd's credentials, else from the environment.

    Raises:
        KeyRefused: there is none, its file is readable to others, or it can't be a key.
    """
    if key_file is not None:
        return _checked(_read(key_file, private=True), str(key_file))
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder:
        credential = Path(folder) / CREDENTIAL_NAME
        if credential.exists():
            # systemd sets owner and mode of these itself, and not to 0600.
            return _checked(_read(credential, private=False), str(credential))
    value = environ.get(KEY_VARIABLE, "")
    if value:
        return _checked(value, KEY_VARIABLE)
    raise KeyRefused(
        "no key for the endpoint",
        f"get one in the TTAPI dashboard (https://ttapi.io), then: export {KEY_VARIABLE}=…, or --key-file FILE; "
        "to rehearse for free without any: --sandbox",
    )


def _read(path: Path, *, private: bool) -> str:
    try:
        # Non-blocking: a named pipe must be refused below, not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failed:
        raise KeyRefused(f"can't read the key file {path}: {failed.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyRefused(f"the key file {path} is not a regular file")
        if private and status.st_uid != os.geteuid():
            raise KeyRefused(f"the key file {path} belongs to somebody else", f"chown it, then: chmod 600 {path}")
        if private and stat.S_IMODE(status.st_mode) & 0o177:
            raise KeyRefused(f"the key file {path} is open to others", f"chmod 600 {path}")
        content = os.read(descriptor, MAX_KEY_BYTES + 1)
    except OSError as failed:
        raise KeyRefused(f"can't read the key file {path}: {failed.strerror}") from None
    finally:
        os.close(descriptor)
    return content.decode("ascii", "replace")


def _checked(text: str, source: str) -> Secret:
    value = text.removesuffix("\n").removesuffix("\r")
    if not value:
        raise KeyRefused(f"the key in {source} is empty")
    if len(value) > MAX_KEY_BYTES or not _HEADER_SAFE.fullmatch(value):
        raise KeyRefused(f"what {source} holds is no key: one line of printable ASCII without spaces is expected")
    return Secret(value)
