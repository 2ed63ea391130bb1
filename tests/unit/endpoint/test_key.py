"""Where the key comes from, and what can't be one."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.endpoint.key import load_key
from banana_batch.errors import Exit, KeyRefused
from banana_batch.secret import Secret

KEY = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"


def _key_file(folder: Path, content: str = KEY, mode: int = 0o600) -> Path:
    path = folder / "ttapi_key"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_the_file_comes_first_then_systemd_then_the_environment(tmp_path: Path) -> None:
    """--key-file, $CREDENTIALS_DIRECTORY/ttapi_key, TT_API_KEY: the first that is there decides."""
    (tmp_path / "credentials").mkdir()
    _key_file(tmp_path / "credentials", "from-systemd\n", 0o440)
    given_file = _key_file(tmp_path, "from-file\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials"), "TT_API_KEY": "from-environment"}
    assert load_key(given_file, environ).reveal() == "from-file"
    assert load_key(None, environ).reveal() == "from-systemd"
    environ["CREDENTIALS_DIRECTORY"] = str(tmp_path / "nowhere")
    assert load_key(None, environ).reveal() == "from-environment"


@pytest.mark.parametrize("environ", [{}, {"TT_API_KEY": ""}])
def test_no_key_says_where_to_get_one(environ: dict[str, str]) -> None:
    """77, with the way to a key and the way without one."""
    with pytest.raises(KeyRefused) as refused:
        load_key(None, environ)
    assert refused.value.exit is Exit.KEY
    assert "dashboard" in (refused.value.hint or "")
    assert "--sandbox" in (refused.value.hint or "")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that others can read is no secret; the message says how to close it, not what is in it."""
    with pytest.raises(KeyRefused, match="open to others") as refused:
        load_key(_key_file(tmp_path, mode=mode), {})
    assert "chmod 600" in (refused.value.hint or "")
    assert KEY not in str(refused.value)


def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns the file could swap the key."""
    path = _key_file(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(KeyRefused, match="somebody else"):
        load_key(path, {})


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    """Folders, pipes (which would hang) and missing files are refused, and never fall back to another source."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (tmp_path, pipe, tmp_path / "missing"):
        with pytest.raises(KeyRefused):
            load_key(path, {"TT_API_KEY": KEY})


@pytest.mark.parametrize("text", ["two words", "a\nb", "a\tb", "\x1b[31m", "schlüssel", "", "\n", "x\n\n", "a" * 5000])
def test_what_cant_be_a_header_is_no_key(tmp_path: Path, text: str) -> None:
    """A key that would split the request or its log is refused, unseen."""
    with pytest.raises(KeyRefused) as refused:
        load_key(_key_file(tmp_path, text), {})
    assert text.strip() == "" or text not in str(refused.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_is_not_part_of_the_key(tmp_path: Path, end: str) -> None:
    """Editors end a file with a newline."""
    assert load_key(_key_file(tmp_path, KEY + end), {}).reveal() == KEY


@given(
    key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60),
    before=st.binary(max_size=20),
    after=st.binary(max_size=20),
)
def test_a_key_is_hidden_wherever_it_stands(key: str, before: bytes, after: bytes) -> None:
    """Plain or inside of base64, at any offset: what is left does not give it back."""
    secret = Secret(key)
    assert key.encode() not in secret.redact_bytes(before + key.encode() + after, 999) or key in "***"
    encoded = base64.b64encode(before + key.encode() + after).decode()
    assert secret.redact(encoded) != encoded
    assert secret.redact_bytes(encoded.encode(), 999) != encoded.encode()


@pytest.mark.parametrize("before", range(90, 105))
def test_a_cut_never_shows_half_a_key(before: int) -> None:
    """What is kept of a long answer ends before a key that its end would split, however short the masks make it."""
    secret = Secret(KEY)
    for start in (b" " * before, (KEY.encode() + b" ") * 40 + b" " * before):
        kept = secret.redact_bytes(start + KEY.encode() + b" " * 9000, 100)
        assert len(kept) <= 100
        assert KEY[:4].encode() not in kept


@given(st.lists(st.sampled_from(range(7)), min_size=len(KEY), max_size=len(KEY)))
def test_a_key_is_hidden_in_any_mix_of_escapes(kinds: list[int]) -> None:
    """Each character as it is or escaped as in urls, JSON or HTML, in either case."""
    spelled = "".join(_spelled(char, kind) for char, kind in zip(KEY, kinds, strict=True))
    assert Secret(KEY).redact(f"a {spelled} b") == "a *** b"
    assert Secret(KEY).redact_bytes(f"a {spelled} b".encode(), 9999) == b"a *** b"


def _spelled(char: str, kind: int) -> str:
    code = ord(char)
    upper = char.upper()
    return (char, upper, f"%{code:02X}", f"\\u00{code:02x}", f"&#{code};", f"&#x00{code:X};", f"%{code:02x}")[kind]


def test_a_short_key_spoils_no_text() -> None:
    """Hiding a key such as `test` would change every `latest` and protect nothing."""
    assert Secret("test").redact("the latest") == "the latest"
    assert Secret("test").redact_bytes(b"the latest", 99) == b"the latest"
