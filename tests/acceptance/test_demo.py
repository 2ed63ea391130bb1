"""The first five minutes: a demo in the sandbox, and every way of looking at what it left."""

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from .command import ARGV, JOBS, Ended, charges, command, credits_of, environment, here, results, tree

KEYS = [
    "id",
    "index",
    "state",
    "prompt",
    "model",
    "aspect_ratio",
    "image_size",
    "thinking_level",
    "google_search",
    "image_search",
    "refer_images",
    "meta",
    "image",
    "bytes",
    "sha256",
    "width",
    "height",
    "content_type",
    "image_url",
    "credits",
    "attempts",
    "latency_s",
    "sent_at",
    "done_at",
    "error",
    "warning",
]
LOOKS = {
    "status": ["status", "out", "--json"],
    "ledger size": ["ledger", "out", "--json", "--by", "size"],
    "jsonl": ["export", "out", "--format", "jsonl"],
    "csv": ["export", "out", "--format", "csv"],
    "download": ["download", "out", "--json"],
    "again": ["run", "demo.csv", "--sandbox", "-o", "out", "--no-progress"],
    "quiet": ["run", "demo.csv", "--sandbox", "-o", "out", "-q"],
}
# These hold the batch's lock: one after the other, behind all who look.
RUNS = ("download", "again", "quiet")


@dataclass(frozen=True, slots=True)
class Demo:
    """A batch that is done, and what commands said of it."""

    folder: Path
    first: Ended
    looks: dict[str, "Future[Ended]"]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def look(self, name: str) -> Ended:
        return self.looks[name].result(60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "demo.csv").write_bytes((JOBS / "demo.csv").read_bytes())
    first = command("run", "demo.csv", "--sandbox", "-o", "out", "--json", "--log-file", "events.jsonl", cwd=folder)
    with ThreadPoolExecutor(3) as pool, ThreadPoolExecutor(1) as behind:
        looks = {name: pool.submit(command, *LOOKS[name], cwd=folder) for name in LOOKS if name not in RUNS}

        def alone(name: str) -> Ended:
            wait(looks[other] for other in LOOKS if other not in RUNS)
            return command(*LOOKS[name], cwd=folder)

        looks |= {name: behind.submit(alone, name) for name in RUNS}
        yield Demo(folder, first, looks)


def test_the_demo_leaves_what_the_contract_names(demo: Demo) -> None:
    """A dozen images, results, state; nothing that begins with a dot but the lock, and no key was needed."""
    assert demo.first.code == 0, demo.first.err
    rows = results(demo.out)
    assert [row["index"] for row in rows] == list(range(1, 13))
    assert {f"images/{name}" for name in os.listdir(demo.out / "images")} == {row["image"] for row in rows}
    assert {"images", "results.jsonl", "state.sqlite3", "sandbox"} <= set(os.listdir(demo.out))


def test_results_have_the_promised_keys_in_order(demo: Demo) -> None:
    """Each line is ASCII JSON with the contract's keys, in its order; what was left out is null."""
    assert (demo.out / "results.jsonl").read_bytes().isascii()
    for row in results(demo.out):
        assert list(row) == KEYS
        assert row["state"] == "done"
        assert row["thinking_level"] is row["google_search"] is row["refer_images"] is None
        assert list(row["meta"]) == ["mood"]


def test_every_image_is_whole_and_what_the_results_say(demo: Demo) -> None:
    """Pillow decodes each image; its size in pixels and bytes is as reported."""
    for row in results(demo.out):
        data = (demo.out / row["image"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert (image.size, len(data)) == ((row["width"], row["height"]), row["bytes"])


def test_the_ledger_is_the_charge_log(demo: Demo) -> None:
    """Spent credits are to the micro-credit what the endpoint's own log says, by every grouping."""
    charged = credits_of(charges(demo.out))
    assert demo.first.summary["credits"]["spent"] == charged
    for by in ("run", "day", "model", "size"):
        ledger = here("ledger", demo.out, "--json", "--by", by).object
        assert list(ledger) == ["spent", "at_risk", "wasted", "rows"]
        assert (ledger["spent"], ledger["at_risk"], ledger["wasted"]) == (charged, "0", "0")
        assert all(list(row) == ["key", "attempts", "spent", "at_risk", "wasted"] for row in ledger["rows"])
        assert sum(row["attempts"] for row in ledger["rows"]) == 12
    keys = {row["key"] for row in demo.look("ledger size").object["rows"]}
    assert keys == {"1K", "2K"}


def test_a_second_run_sends_nothing(demo: Demo) -> None:
    """Everything is done: exit 0 in words, and the charge log has as many lines as before."""
    again = demo.look("again")
    assert again.code == 0
    assert "12 done" in again.out
    assert str(demo.out) in again.out
    assert len(charges(demo.out)) == 12


def test_status_says_the_same_as_the_run(demo: Demo) -> None:
    """`status --json` has the object of `run --json`."""
    status, first = demo.look("status").summary, demo.first.summary
    for key in ("exit", "reason", "jobs", "credits", "out", "running"):
        assert status[key] == first[key]
    assert first["out"] == str(demo.out)


def test_export_gives_results_in_manifest_order(demo: Demo) -> None:
    """JSON lines are those of results.jsonl; CSV has a column a key, and one for each column of the user's own."""
    assert demo.look("jsonl").out == (demo.out / "results.jsonl").read_text()
    rows = list(csv.DictReader(io.StringIO(demo.look("csv").out, newline="")))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in results(demo.out)]
    assert set(KEYS) - {"meta"} <= set(rows[0])
    assert rows[0]["meta.mood"] == "calm"


def test_download_with_nothing_to_fetch_is_done(demo: Demo) -> None:
    """`download` of a batch that is whole ends with 0 and sends nothing."""
    assert demo.look("download").summary["exit"] == 0
    assert len(charges(demo.out)) == 12


def test_quiet_says_nothing(demo: Demo) -> None:
    """-q: no word where nothing is wrong, so that cron mails only on trouble."""
    quiet = demo.look("quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_the_log_goes_where_it_was_told(demo: Demo) -> None:
    """--log-file takes the events, one JSON object a line, instead of run.log; its last word is the run's end."""
    events = [json.loads(line) for line in (demo.folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("stored") == 12
    assert (events[-1]["event"], events[-1]["exit"]) == ("run_ended", 0)


@pytest.mark.parametrize("arguments", [LOOKS["csv"], LOOKS["status"]], ids=["export", "status"])
def test_a_reader_that_went_away_is_no_failure(demo: Demo, arguments: list[str]) -> None:
    """`… | head` that closes early ends in silence: no traceback, no bug, no code that means something else."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*ARGV, *arguments], cwd=demo.folder, env=environment(demo.folder), stdout=writing, stderr=subprocess.PIPE,
        check=False, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_look_is_a_success(demo: Demo) -> None:
    """Each command above ends with 0, and none leaves a half-made file behind."""
    for look in demo.looks.values():
        assert look.result(60).code == 0, look.result().err
    assert not [name for name in tree(demo.out) if name.endswith((".part", ".tmp"))]
