"""The log of what was sold."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from banana_batch.errors import BatchLocked, SettingsError
from banana_batch.money import MICRO
from banana_batch.sandbox.charges import LOG_NAME, ChargeLog, read_charges
from banana_batch.sandbox.faults import Fault, FaultKind
from banana_batch.sandbox.orders import Order


def order(prompt: str = "a cat") -> Order:
    return Order(prompt=prompt, model="gemini-3-pro-image-preview")


async def test_a_charge_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """Whoever reads the file after a charge finds its line, whole."""
    log = ChargeLog(tmp_path / "sandbox")
    name = await log.charge(order("an \n odd \u2028 one"), 2_500_000, Fault(FaultKind.IMAGE_404, tries=2))
    (line,) = read_charges(tmp_path / "sandbox")
    assert (line.image, line.prompt, line.credits, line.fault, line.tries) == (
        name,
        "an \n odd \u2028 one",
        2_500_000,
        FaultKind.IMAGE_404,
        2,
    )
    assert line == log.find(name)
    assert (tmp_path / "sandbox" / LOG_NAME).stat().st_mode & 0o777 == 0o600
    await log.close()


async def test_concurrent_charges_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred calls at the same time cost a few syncs, and every one has its own line and number."""
    log = ChargeLog(tmp_path)
    synced: list[int] = []
    sync = os.fsync

    def counted(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    names = await asyncio.gather(*(log.charge(order(f"cat {number}"), MICRO) for number in range(100)))
    assert 1 <= len(synced) <= 3
    assert [charge.number for charge in log] == list(range(1, 101))
    assert [charge.image for charge in log] == names
    assert log.total == 100 * MICRO
    await log.close()


async def test_a_restart_finds_every_picture_and_goes_on_counting(tmp_path: Path) -> None:
    """Numbers, total and names go on where the last life ended, also after a prompt longer than any buffer."""
    first = ChargeLog(tmp_path)
    names = [await first.charge(order(prompt), 2 * MICRO) for prompt in ("one", "x" * 100_000)]
    await first.close()
    second = ChargeLog(tmp_path)
    assert (second.number, second.total) == (2, 4 * MICRO)
    found = [second.find(name) for name in names]
    assert [charge and len(charge.prompt) for charge in found] == [3, 100_000]
    await second.charge(order("three"), MICRO)
    assert [charge.number for charge in read_charges(tmp_path)] == [1, 2, 3]
    await second.close()


@pytest.mark.parametrize("lines", [0, 1, 2])
async def test_a_torn_last_line_is_cut_off(tmp_path: Path, lines: int) -> None:
    """A line without its end was never answered for: after a kill the log goes on from the last whole one."""
    log = ChargeLog(tmp_path)
    for number in range(lines):
        await log.charge(order(f"cat {number}"), MICRO)
    await log.close()
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(b'{"number":9,"image":"ab' + b"x" * 40_000)
    assert len(read_charges(tmp_path)) == lines
    again = ChargeLog(tmp_path)
    assert again.number == lines
    assert (tmp_path / LOG_NAME).read_bytes().count(b"x" * 1000) == 0
    name = await again.charge(order("next"), MICRO)
    assert [charge.number for charge in read_charges(tmp_path)] == list(range(1, lines + 2))
    assert again.find(name) is not None
    await again.close()


async def test_a_log_that_is_none_is_left_alone(tmp_path: Path) -> None:
    """A file whose last line is no charge is refused, not overwritten."""
    (tmp_path / LOG_NAME).write_text("my notes\n")
    with pytest.raises(SettingsError, match="damaged"):
        ChargeLog(tmp_path)
    assert (tmp_path / LOG_NAME).read_text() == "my notes\n"


async def test_two_sandboxes_never_share_a_log(tmp_path: Path) -> None:
    """The second one is refused while the first one lives."""
    log = ChargeLog(tmp_path)
    with pytest.raises(BatchLocked, match="another sandbox"):
        ChargeLog(tmp_path)
    await log.close()
    await ChargeLog(tmp_path).close()


async def test_a_full_disk_charges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the sync fails the caller is told, and no trace of the call is left for the ledger to differ from."""
    log = ChargeLog(tmp_path)
    await log.charge(order("one"), MICRO)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            await log.charge(order("two"), MICRO)
    assert [charge.prompt for charge in read_charges(tmp_path)] == ["one"]
    await log.charge(order("three"), MICRO)
    assert [(charge.number, charge.prompt) for charge in read_charges(tmp_path)] == [(1, "one"), (2, "three")]
    await log.close()


async def test_a_name_cannot_be_guessed() -> None:
    """Right offsets with wrong digits, offsets within a line, past the end and of odd spelling find nothing."""
    log = ChargeLog(None)
    name = await log.charge(order(), MICRO)
    await log.charge(order(), MICRO)
    assert log.find(name) is not None
    wrong = ["", "0" * 32 + "0", name[:32] + "1", name[:32] + "ffffff", name[:32] + "00", name[:32] + "-1", name[:32] + "\u0661",
             name.upper() + "A", name[:32] + "f" * 15, name[:32] + "f" * 40, "../" + name]  # fmt: skip
    assert [log.find(one) for one in wrong] == [None] * len(wrong)


async def test_a_caller_that_goes_away_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charges on their way are finished before the log closes, those of the next group too, whoever waits for them."""
    log = ChargeLog(tmp_path)
    syncing, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        syncing.set()
        go_on.wait(5)

    with monkeypatch.context() as slowed:
        slowed.setattr(os, "fsync", slow)
        callers = [asyncio.create_task(log.charge(order("first group"), MICRO))]
        await asyncio.to_thread(syncing.wait, 5)
        callers.append(asyncio.create_task(log.charge(order("second group"), MICRO)))
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        go_on.set()
        await log.close()
    assert [charge.prompt for charge in read_charges(tmp_path)] == ["first group", "second group"]
