"""Events as sentences: what happened, what it cost, what to do next.

Rule 1: a sentence for each event that a person should know of; the others are only counted.
Rule 2: every text that is not ours goes through `text.printable`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from banana_batch.money import credits_text, priced_text
from banana_batch.text import duration_text, plural, printable

MAX_URL_CHARS = 8192

Facts = Mapping[str, Any]


def started(facts: Facts) -> str:
    """Say how much there is to do."""
    total = sum(facts["jobs"].values())
    budget = facts["budget_micro"]
    what = (
        plural(facts["todo"], "image") if facts["todo"] == total else f"{facts['todo']:,} of {plural(total, 'image')}"
    )
    cap = f"; budget {priced_text(budget)}" if budget is not None else ""
    doing = "Making" if facts.get("buys", True) else "Fetching"
    return f"{doing} {what} in {printable(str(facts['out']))}{cap}"


def estimated(facts: Facts) -> str:
    """Say what the whole is likely to cost."""
    least, most = credits_text(facts["least_micro"]), credits_text(facts["most_micro"])
    between = f", {least} to {most}" if least != most else ""
    return f"The first prices are known: all of it takes about {priced_text(facts['expected_micro'])}{between}"


def answered(facts: Facts) -> str:
    """Say that a request was refused for good or got no trustworthy answer."""
    what = "failed" if facts["outcome"] == "refused" else "in doubt"
    return f"{_job(facts)} {what}: {_why(facts['verdict'], facts['message'])}"


def unrecorded(facts: Facts) -> str:
    """Say where a paid image is that no disk took a note of: whole, as it is told nowhere else."""
    url = facts["image_url"]
    bought = f"its image is at {printable(str(url), MAX_URL_CHARS)}" if url else f"it ended with {facts['verdict']}"
    return f"{_job(facts)} was answered and could not be recorded: {bought}"


def fetch_failed(facts: Facts) -> str:
    """Say that a paid image can't be had."""
    what = "lost: paid, and the image can't be had" if facts["lost"] else "paid, its image could not be fetched yet"
    return f"{_job(facts)} {what}: {_why(facts['error'], facts['message'])}"


def incident_started(facts: Facts) -> str:
    """Say that the endpoint can't be used."""
    return f"The endpoint can't be used ({printable(str(facts['cause']))}): pausing, then one call at a time"


def incident_ended(facts: Facts) -> str:
    """Say that it answers again."""
    doubts = f"; {plural(facts['doubts'], 'request')} in doubt" if facts["doubts"] else ""
    return f"The endpoint answers again after {duration_text(facts['duration_s'])}{doubts}{_proxy(facts)}"


def dearer(facts: Facts) -> str:
    """Say that an image cost more than was set aside for it."""
    cost, expected = priced_text(facts["credits_micro"]), credits_text(facts["expected_micro"])
    return f"{_job(facts)} cost {cost}, and {expected} was set aside: each of its kind sets as much aside from now on"


def throttled(facts: Facts) -> str:
    """Say that the endpoint wants fewer calls."""
    wait = f", pausing {duration_text(facts['cooldown_s'])}" if facts["cooldown_s"] else ""
    return f"The endpoint wants fewer calls: {facts['limit']} at a time now{wait}"


def gave_up(facts: Facts) -> str:
    """Say that the run ends as the endpoint stayed away."""
    return f"Giving up after {duration_text(facts['after_s'])}: {printable(str(facts['cause']))}{_proxy(facts)}"


def slept(facts: Facts) -> str:
    """Say that the machine was asleep."""
    return f"This machine slept for {duration_text(facts['gap_s'])}; going on"


def drained(facts: Facts) -> str:
    """Say what a stop waits for, and what a second one would cost."""
    stop = f"Stopping ({printable(str(facts['reason']))})"
    calls = facts["on_wire"]
    if not calls:
        return f"{stop}: no call is on the wire"
    typical = facts["typical_s"]
    usual = f", usually {duration_text(typical)} each" if typical is not None else ""
    at_stake = priced_text(facts["at_stake_micro"])
    return f"{stop}: {plural(calls, 'call')} on the wire{usual}, {at_stake} at stake. Again: stop at once"


def stopped(facts: Facts) -> str:
    """Say why the run has to end, and what to do."""
    hint = facts["hint"]
    return f"Stopping: {printable(str(facts['message']))}" + (f". {printable(str(hint))}" if hint else "")


def noted(facts: Facts) -> str:
    """Pass a remark on."""
    return printable(str(facts["message"]))


PHRASES: dict[str, Callable[[Facts], str]] = {
    "run_started": started,
    "estimate": estimated,
    "answered": answered,
    "fetch_failed": fetch_failed,
    "unrecorded": unrecorded,
    "incident_started": incident_started,
    "incident_ended": incident_ended,
    "dearer": dearer,
    "throttled": throttled,
    "gave_up": gave_up,
    "slept": slept,
    "drain": drained,
    "stop": stopped,
    "note": noted,
}


def _proxy(facts: Facts) -> str:
    """Say what equally long doubts look like."""
    cut_s = facts.get("likely_proxy_timeout_s")
    return f"; something on the way seems to cut calls after about {duration_text(cut_s)}: a proxy?" if cut_s else ""


def _job(facts: Facts) -> str:
    return f"Job {facts['index']} ({printable(str(facts['id']), 40)})"


def _why(name: str, message: str | None) -> str:
    return f"{name}: {printable(message, 200)}" if message else name
