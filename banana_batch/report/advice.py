"""What to do next, as commands a person can paste.

Rule 1: what the exit code is about comes first, then whatever else the batch still needs.
Rule 2: nothing that may buy an image twice is advised without saying so.
"""

from msgspec import Struct

from banana_batch.errors import Exit
from banana_batch.lifecycle import JobState
from banana_batch.money import MICRO
from banana_batch.text import plural, shell_line, with_option

from .account import Account


class Step(Struct, frozen=True):
    """One thing to do: a command, or (where it is empty) what to mend first."""

    command: str
    why: str


# What has to be mended before the same command makes sense again.
_MEND: dict[Exit, str] = {
    Exit.OUT_OF_CREDITS: "Top up the account, then go on",
    Exit.UNAVAILABLE: "Wait until the endpoint is back, then go on",
    Exit.DISK: "Free some space on the disk, then go on",
    Exit.PROTOCOL: "Look at the last lines of run.log: the endpoint or an image's address is not as we know it",
    Exit.KEY: "Put the key right (TT_API_KEY, or --key-file), then go on",
    Exit.SETTINGS: "Put the settings right, as said above, then go on",
    Exit.BAD_INPUT: "Mend the manifest, as said above, then go on",
    Exit.BUG: "Report it, with the last lines of run.log; what was paid for is in the state file",
}


def next_steps(account: Account) -> list[Step]:
    """Return what to do next, most urgent first; nothing where all is done."""
    out = shell_line([account.out])
    steps = []
    paid, doubts = account.count(JobState.PAID), account.count(JobState.IN_DOUBT)
    failed, lost = account.count(JobState.FAILED), account.count(JobState.LOST)
    if paid:
        fetch = f"fetch {plural(paid, 'image')} already paid for; soon: their urls expire"
        steps.append(Step(f"banana-batch download {out}", fetch))
    steps += _go_on(account)
    if doubts:
        why = f"settle {plural(doubts, 'request')} that may have been charged and got no good answer"
        steps.append(Step(f"banana-batch resolve {out}", why))
    if failed:
        why = f"and run again, to retry {plural(failed, 'failed job')}; rows you mend need no redo"
        steps.append(Step(f"banana-batch redo {out} --failed", why))
    if lost:
        steps.append(
            Step(f"banana-batch redo {out} --lost", f"and run again, to buy {plural(lost, 'lost image')} once more")
        )
    return steps


def _go_on(account: Account) -> list[Step]:
    steps = []
    if account.exit in _MEND:
        steps.append(Step("", _MEND[account.exit]))
    waiting = plural(account.count(JobState.PENDING), "job")
    words = account.run_command
    if not account.count(JobState.PENDING):
        return steps
    if not words:
        return [*steps, Step("", f"Run the manifest again, to go on with {waiting} not sent yet")]
    why = f"go on with {waiting} not sent yet; nothing is bought twice"
    if account.exit is Exit.BUDGET:
        why = f"go on with {waiting} not sent yet"
        if _is_used_up(account):
            words = with_option(words, "--budget", _enough(account))
    return [*steps, Step(shell_line(words), why)]


def _is_used_up(account: Account) -> bool:
    """Tell whether it is the batch's budget that ended the run, and not that of the run alone."""
    if account.budget_micro is None:
        return False
    left = account.budget_micro - account.totals.committed
    return account.run_budget_micro is None or left <= account.run_budget_micro - account.run_totals.committed


def _enough(account: Account) -> str:
    if account.expected_micro is None:
        return "CREDITS"
    return str(-(-(account.totals.committed + account.expected_micro) // MICRO))
