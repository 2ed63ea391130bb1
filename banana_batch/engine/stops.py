"""When a run ends before its work does: the stop rules, and the exit code of everything together."""

import math
from collections.abc import Mapping

from msgspec import Struct, field

from banana_batch.errors import Exit, worst
from banana_batch.lifecycle import JobState
from banana_batch.models import StopRule, Verdict


class Stop(Struct, frozen=True):
    """Why no further call is sent.

    Attributes:
        message: What happened.
        hint: What the user does next.
    """

    exit: Exit
    message: str
    hint: str = ""


class Streak(Struct):
    """Counts answers of one class in a row, for the stop rules."""

    name: str = ""
    length: int = 0
    classes: set[str] = field(default_factory=set)

    def see(self, verdict: Verdict) -> StopRule | None:
        """Count one answer; return its stop rule if that is reached now."""
        self.length = self.length + 1 if verdict.name == self.name else 1
        self.name = verdict.name
        self.classes.add(verdict.name)
        rule = verdict.stop
        if rule is None or self.length < rule.after or (rule.from_start and len(self.classes) > 1):
            return None
        return rule


# So few jobs left, all refused in turn, are more likely bad ones than an outage that met just them.
FEW = 5


class Refusals(Struct):
    """Whether a refusal that may pass says something about its job, or about the endpoint.

    As long as only one job is refused it may be the job. When another is refused too, and no call that was sent
    since then was served, it is the endpoint: an hour of that must not use up the tries of any job, so what was used
    up meanwhile is given back. Calls that were sent before prove nothing: a wide run has many of them out, and they
    still end well. When no other job is left to compare with, a few that are refused in turn are to blame themselves:
    else they would be tried until the run gives up, and again in each one after it.
    """

    _used: dict[int, int] = field(default_factory=dict)  # tries, by job; only of jobs that are refused for now
    _had: dict[int, int] = field(default_factory=dict)  # the same, before the spell of refusals that lasts
    _began_s: float = -math.inf

    def refused(self, index: int, now_s: float, *, counts: bool, last: bool = False) -> int:
        """Take in a refusal; return how many tries its job has used up with it, 0 if it uses none up.

        Args:
            counts: False: it is known already that the endpoint fails for everybody.
            last: No job is left that was not refused.
        """
        if not self._had:
            self._began_s = now_s
        self._had.setdefault(index, self._used.get(index, 0))
        alone = len(self._had) == 1 or (last and len(self._had) < FEW)
        if not alone:
            self._used.update(self._had)
        if not alone or not (counts or (last and len(self._had) < FEW)):
            return 0
        self._used[index] = self._used.get(index, 0) + 1
        return self._used[index]

    def served(self, index: int, sent_at_s: float) -> None:
        """Take in that a call was served, or judged by what it asked for."""
        self._used.pop(index, None)
        self._had.pop(index, None)
        if sent_at_s >= self._began_s:
            self._had.clear()


def exit_code(stops: list[Stop], jobs: Mapping[JobState, int], *, limited: bool, blocked: bool = False) -> Exit:
    """Return the code of a run that has ended.

    Args:
        stops: Why sending ended early, if it did.
        jobs: Jobs of the manifest by state.
        limited: `--limit` was reached: what is pending was not asked for.
        blocked: A paid image of theirs has a url that may not be fetched.
    """
    codes = {stop.exit for stop in stops}
    left = jobs[JobState.PENDING] + jobs[JobState.SENDING]
    if not left:
        # A budget, a signal or an outage that left nothing undone did not change the outcome. Whoever stops a run
        # that only fetches leaves images unfetched.
        codes -= {Exit.BUDGET, Exit.OUT_OF_CREDITS, Exit.UNAVAILABLE}
        if not jobs[JobState.PAID]:
            codes.discard(Exit.STOPPED)
    elif not limited and not codes:
        codes.add(Exit.STOPPED)
    if jobs[JobState.PAID]:
        codes.add(Exit.NOT_FETCHED)
    if blocked:
        codes.add(Exit.PROTOCOL)
    if jobs[JobState.IN_DOUBT]:
        codes.add(Exit.IN_DOUBT)
    if jobs[JobState.FAILED] or jobs[JobState.LOST]:
        codes.add(Exit.FAILED)
    return worst(codes)
