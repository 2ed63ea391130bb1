"""Prices, latency, limits and shares of faults: text forms and decisions."""

from statistics import median, quantiles

import pytest
from msgspec.structs import replace

from banana_batch.models import Kind
from banana_batch.money import MICRO
from banana_batch.sandbox.config import Latency, SandboxConfig, list_prices, parse_fault, parse_prices
from banana_batch.sandbox.faults import Dice, Fault, FaultKind, FaultShare
from banana_batch.sandbox.throttle import Throttle

FRACTIONS = [(step + 0.5) / 2000 for step in range(2000)]


def test_latency_forms_mean_what_they_say() -> None:
    """fixed is one value, uniform spans its ends, lognormal has its median and its 95th percentile."""
    assert {Latency.parse("fixed:2.5").at(part) for part in FRACTIONS} == {2.5}
    uniform = [Latency.parse("uniform:1,3").at(part) for part in FRACTIONS]
    assert min(uniform) == pytest.approx(1, abs=0.01)
    assert max(uniform) == pytest.approx(3, abs=0.01)
    skewed = [Latency.parse("lognormal:12,40").at(part) for part in FRACTIONS]
    assert median(skewed) == pytest.approx(12, rel=0.01)
    assert quantiles(skewed, n=100)[94] == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize(
    "text",
    ["", "12", "fixed", "fixed:x", "fixed:1,2", "uniform:3,1", "lognormal:0,5", "fixed:-1", "fixed:nan", "normal:1,2"],
)
def test_a_latency_that_is_none_says_the_forms(text: str) -> None:
    """What can't be read is answered by what could."""
    with pytest.raises(ValueError, match=r"fixed:SECONDS, uniform:FROM,TO or lognormal:MEDIAN,P95"):
        Latency.parse(text)


def test_every_kind_of_fault_can_be_ordered() -> None:
    """KIND=SHARE reads each kind; an image fault may be bounded to some fetches."""
    for kind in FaultKind:
        assert parse_fault(f"{kind}=0.05") == FaultShare(Fault(kind), 0.05)
    assert parse_fault("image-404x2=1") == FaultShare(Fault(FaultKind.IMAGE_404, tries=2), 1.0)


@pytest.mark.parametrize(
    "text", ["", "429", "429=", "429=2", "429=-0.1", "429=nan", "418=0.1", "image-404x0=0.1", "image-404x=1", "500x2=1"]
)
def test_a_fault_that_is_none_says_what_is_allowed(text: str) -> None:
    """What can't be read is answered by the list of kinds."""
    with pytest.raises(ValueError, match=r"KIND=SHARE, such as 429=0.05, of 429, .*image-mislabelled"):
        parse_fault(text)


def test_shares_above_all_calls_are_refused() -> None:
    """Two faults cannot both meet 60 % of calls."""
    with pytest.raises(ValueError, match="add up to 1"):
        SandboxConfig(faults=(parse_fault("429=0.6"), parse_fault("500=0.6")))


def test_prices_narrow_down_and_the_last_one_wins() -> None:
    """A flat price, a model's, a model's at one size; aliases are read; unknown models are named."""
    pro = "gemini-3-pro-image-preview"
    assert list_prices()[Kind("gemini-2.5-flash-image", "1K")] == 2 * MICRO
    prices = parse_prices(["3", f"{pro}=0.5", "Nano Banana Pro/4K=24"])
    assert prices[Kind("gemini-2.5-flash-image", "2K")] == 3 * MICRO
    assert prices[Kind(pro, "2K")] == MICRO // 2
    assert prices[Kind(pro, "4K")] == 24 * MICRO
    with pytest.raises(ValueError, match="gemini-3-pro-image-preview"):
        parse_prices(["gemini-9=1"])


def test_the_same_seed_meets_the_same_faults() -> None:
    """What a call meets depends on seed, life, request and occurrence, and on nothing else."""
    throw = Dice.throw(7, 0, b"request", 0)
    assert throw == Dice.throw(7, 0, b"request", 0)
    others = [
        Dice.throw(8, 0, b"request", 0),
        Dice.throw(7, 1, b"request", 0),
        Dice.throw(7, 0, b"r", 0),
        Dice.throw(7, 0, b"request", 1),
    ]
    assert len({throw, *others}) == 5


def test_shares_of_faults_are_kept() -> None:
    """Of many requests the ordered share meets each fault."""
    shares = (parse_fault("429=0.05"), parse_fault("500=0.02"))
    met = [Dice.throw(1, 0, str(number).encode(), 0).pick(shares) for number in range(20_000)]
    assert met.count(Fault(FaultKind.TOO_MANY)) == pytest.approx(1000, rel=0.15)
    assert met.count(Fault(FaultKind.SERVER_ERROR)) == pytest.approx(400, rel=0.2)
    assert Dice(0.5, 0.5).pick((FaultShare(Fault(FaultKind.HANG), 1.0),)) == Fault(FaultKind.HANG)


def test_a_rate_limit_counts_the_last_minute() -> None:
    """The third call within 60 s is refused with the time until the first one is forgotten, then taken."""
    throttle = Throttle(SandboxConfig(rate_limit=2))
    assert throttle.judge(100.0, 0, 1, 0) is None
    assert throttle.judge(110.0, 0, 1, 0) is None
    refused = throttle.judge(120.5, 0, 1, 0)
    assert refused is not None
    assert (refused.status, refused.retry_after_s) == (429, 40)
    assert throttle.judge(160.0, 0, 1, 0) is None
    assert throttle.judge(165.0, 0, 1, 0) is not None


def test_limits_apply_in_their_order() -> None:
    """Rate before queue before balance; a refused call uses up no rate."""
    config = SandboxConfig(rate_limit=1, queue_limit=2, balance=10, retry_after=False)
    throttle = Throttle(config)
    statuses = [throttle.judge(0.0, *state) for state in ((2, 5, 0), (1, 5, 6), (1, 5, 5), (0, 5, 0))]
    assert [refusal and refusal.status for refusal in statuses] == [499, 402, None, 429]
    assert statuses[3] is not None
    assert statuses[3].retry_after_s is None
    none_allowed = Throttle(replace(config, rate_limit=0)).judge(0.0, 0, 1, 0)
    assert none_allowed is not None
    assert none_allowed.status == 429
