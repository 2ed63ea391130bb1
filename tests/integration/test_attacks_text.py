"""Other people's text on every output: escapes, bidi marks, forged lines, formulas, lines of units (S9, S10)."""

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.cli import app
from banana_batch.report.results import write_csv
from banana_batch.text import csv_cell, printable, shell_line
from tests.integration import whole_runs
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import gateway, run_batch

FORGED = "FORGED: all is done"
HOSTILE = f"\x1b]0;title\x07\x1b[31m\u202eevil\u2066\x9b31m\r\n{FORGED}\u2028{FORGED}\x0b{FORGED}\x08\x7f"
FORBIDDEN = {chr(code) for code in (*range(32), *range(0x7F, 0xA0))} - {"\n"} | set(
    "\u202e\u2066\u2028\u2029\u200e\u061c"
)


def check(text: str) -> None:
    """No control, escape or bidi mark, and no line that somebody else began."""
    assert FORBIDDEN.isdisjoint(text), sorted(map(repr, FORBIDDEN & set(text)))
    assert not [line for line in text.splitlines() if line.startswith(("FORGED", "evil"))]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a batch, once, whose folder, manifest, rows and columns are all hostile; one of its jobs fails."""
    folder = tmp_path_factory.mktemp("text") / f"dir\x1b[31m\u202e\n{FORGED}"
    folder.mkdir()
    manifest, out = folder / "p\x1b[2J\u202e.jsonl", folder / "out\x1b[5m"
    rows = [
        {"prompt": f"a {HOSTILE}", "id": "good", "note": HOSTILE, "tag\x1b[1m": HOSTILE},
        {"prompt": f"b {HOSTILE}", "model": f"gemini-\x1b[31m\u202ex\n{FORGED}"},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app.main(["run", str(manifest), "--sandbox", "--allow-unknown-model", "-o", str(out), "-q"])
    return manifest, out


MORE = ("--sandbox", "--allow-unknown-model", "-o", "OUT")
COMMANDS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "MANIFEST", *MORE),
    "plan of bad rows": ("plan", "MANIFEST", "--sandbox", "-o", "NEW"),
    "run": ("run", "MANIFEST", *MORE),
    "run, verbose": ("run", "MANIFEST", "-v", "--sandbox", "--allow-unknown-model", "-o", "NEW"),
    "run, json": ("run", "MANIFEST", *MORE, "--json"),
    "status": ("status", "OUT"),
    "status of jobs": ("status", "OUT", "--jobs"),
    "ledger by model": ("ledger", "OUT", "--by", "model"),
    "ledger of two": ("ledger", "OUT", "OUT"),
    "verify": ("verify", "OUT"),
    "export": ("export", "OUT"),
    "redo": ("redo", "OUT", HOSTILE),
    "resolve": ("resolve", "OUT", HOSTILE, "--drop"),
    "resolve an amount": ("resolve", "OUT", "--all", "--charged", HOSTILE),
    "no manifest": ("run", f"{HOSTILE}.csv", "--sandbox"),
    "no batch": ("status", HOSTILE),
    "no option": ("run", "MANIFEST", f"--x{HOSTILE}"),
    "no command": (HOSTILE,),
    "no number": ("run", "MANIFEST", "--rpm", HOSTILE),
    "no model": ("run", "MANIFEST", "--sandbox", "--model", HOSTILE, "-o", "NEW"),
    "no host": ("run", "MANIFEST", "--allow-host", HOSTILE, *MORE),
    "no gateway": ("run", "MANIFEST", "--base-url", f"http://{HOSTILE}"),
    "no name": ("run", "MANIFEST", "--sandbox", "--filename", HOSTILE),
    "no template": ("run", "MANIFEST", "--sandbox", "--prompt", f"{{{HOSTILE}"),
    "no key file": ("run", "MANIFEST", "--allow-unknown-model", "--key-file", HOSTILE, "-o", "NEW"),
    "no certificates": ("run", "MANIFEST", "--sandbox", "--ca-file", HOSTILE, "-o", "NEW"),
    "no time": ("schedule", "MANIFEST", "--at", HOSTILE, "--for", "cron"),
    "no unit": ("schedule", "MANIFEST", "--at", "22:00", "--for", "systemd"),
    "no target": ("export", "OUT", "--to", f"/nowhere/{HOSTILE}"),
    "no fault": ("sandbox", "--fault", HOSTILE),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_prints_what_a_terminal_would_obey(
    batch: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """On standard output and error, of each command, wherever the text came from."""
    places = {"MANIFEST": str(batch[0]), "OUT": str(batch[1]), "NEW": str(tmp_path / f"new{HOSTILE}")}
    capfd.readouterr()
    app.main([places.get(word, word) for word in COMMANDS[name]])
    said = capfd.readouterr()
    assert said.out + said.err
    check(said.out)
    check(said.err)


def test_what_a_run_leaves_to_read_is_clean(batch: tuple[Path, Path]) -> None:
    """summary.md, run.log and results.jsonl; a record of the log is one line of ASCII."""
    for name in ("summary.md", "run.log", "results.jsonl"):
        text = (batch[1] / name).read_text()
        check(text)
        if name != "summary.md":
            assert text.isascii()
            assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


async def test_what_the_endpoint_says_forges_nothing() -> None:
    """Its messages are one bounded line in the log, the results and on the terminal."""
    with whole_runs.scratch() as folder:
        out = folder / "out"
        async with gateway(lambda _peer, _arrived: answer(400, failed(HOSTILE + "x" * 9000))) as peer:
            ended = await run_batch(out, peer.url, ["one"])
        check(ended.said)
        for name in ("run.log", "results.jsonl", "summary.md"):
            text = (out / name).read_text()
            check(text)
            assert FORGED in text
            assert max(map(len, text.splitlines())) < 4096


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "\u3000=1", "\u200b=1", "\ufeff=1", "\u00ad=1",
    "\x0b=1", "\x00=1", "＝1", "＋1", "－1", "＠1", "−1", "=HYPERLINK(\"http://x\")", "=cmd|'/c calc'!A0", " \t \u2060=1",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    """Behind an apostrophe a spreadsheet shows it as text; in prompts, names and values."""
    row = {"meta": {text: text}, "error": {"class": text, "message": text}, "prompt": text, "id": text}
    keys = dict.fromkeys(["index", "state", "model", "aspect_ratio", "image_size", "thinking_level", "google_search",
                          "image_search", "refer_images", "image", "bytes", "sha256", "width", "height", "content_type",
                          "image_url", "credits", "attempts", "latency_s", "sent_at", "done_at", "warning"])  # fmt: skip
    stream = io.StringIO()
    write_csv(stream, [{**keys, **row}])
    for line in csv.reader(io.StringIO(stream.getvalue())):
        assert all(cell.startswith(("'", "meta.")) or not cell or cell in {*keys, *row} for cell in line)


@given(st.text(max_size=40))
def test_a_cell_reads_as_text_whatever_it_holds(text: str) -> None:
    """What is no formula stays as it is."""
    cell = csv_cell(text)
    assert cell in (text, f"'{text}")
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@given(st.text(max_size=300), st.integers(1, 80))
def test_a_printable_text_is_one_bounded_line(text: str, limit: int) -> None:
    """Whatever comes in."""
    clean = printable(text, limit)
    assert len(clean) <= limit
    assert FORBIDDEN.isdisjoint(clean)
    assert len(clean.splitlines()) <= 1
    clean.encode()


NAMES = [
    "plain",
    "two words",
    "it's",
    "\x1b[31m",
    "a\nb",
    "\u202egnp.exe",
    "7\x016",
    "\\x",
    "'\\\n'",
    "é\n",
    "$(id)",
    "`id`",
    "\x1b'; id; '",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_to_be_pasted_means_what_it_says(name: str) -> None:
    """Escapes are spelled, and the shell reads the very same word."""
    line = shell_line(["printf", "%s", name])
    check(line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=10)
    assert done.stdout.decode() == name


@pytest.mark.parametrize("target", ["systemd", "cron"])
@pytest.mark.parametrize("where", ["name", "out"])
def test_no_path_becomes_a_line_of_a_unit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], where: str, target: str
) -> None:
    """A line end in a job file's name, or in its `out`, would be a command that the system runs."""
    evil = "night\nExecStartPre=/bin/evil\n* * * * * evil"
    job_file = tmp_path / (f"{evil.replace('/', '_')}.toml" if where == "name" else "night.toml")
    out = json.dumps(str(tmp_path / "fine") if where == "name" else evil)
    job_file.write_text(f'[run]\nsandbox = true\nout = {out}\n[[jobs]]\nprompt = "a"\n')
    assert app.main(["schedule", str(job_file), "--at", "22:00", "--for", target]) == 64
    assert capfd.readouterr().out == ""
