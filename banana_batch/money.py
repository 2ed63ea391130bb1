"""Credits as integers.

Rule 1: an amount is an `int` of millionths of a credit ("micro"). Binary floats never enter.
Rule 2: 100 credits are 1 USD (the vendor's billing page).
"""

from decimal import ROUND_CEILING, Decimal, InvalidOperation

MICRO = 1_000_000
CREDITS_PER_USD = 100

# More than this for one image is no price but an accident (a balance, an id): safety.md, section 2.
MAX_USABLE_CREDITS = 1_000_000


def to_micro(credits: Decimal) -> int:
    """Return credits as millionths, rounded up: a budget is never overshot by rounding."""
    return int((credits * MICRO).to_integral_value(rounding=ROUND_CEILING))


def parse_credits(text: str) -> int:
    """Read an amount the user typed: `250`, `2.5` credits, or `$5` dollars; in millionths.

    Raises:
        ValueError: not a finite amount of zero or more.
    """
    stripped = text.strip().replace("_", "")
    dollars = stripped.startswith("$")
    try:
        amount = Decimal(stripped.removeprefix("$"))
    except InvalidOperation:
        raise ValueError("credits such as 250 or 2.5, or dollars such as $5") from None
    if not amount.is_finite() or amount < 0 or amount > Decimal(10) ** 12:
        raise ValueError("an amount from 0 to 1000000000000 credits")
    return to_micro(amount * CREDITS_PER_USD if dollars else amount)


def usable_quota(value: object) -> int | None:
    """Return what the endpoint says a call cost, in millionths; None where it can't be trusted.

    The endpoint documents an integer; its sister products send numeric strings, so both are read,
    and decimals too. Booleans, negatives, NaN and amounts above a million credits are not prices.
    """
    if type(value) is int and 0 <= value <= MAX_USABLE_CREDITS:  # as documented: a tenth of the time
        return value * MICRO
    amount = _stated(value)
    return None if amount is None or amount > MAX_USABLE_CREDITS else to_micro(amount)


def is_beyond_price(value: object) -> bool:
    """Tell whether the endpoint states an amount that is no price, for being above a million credits."""
    amount = _stated(value)
    return amount is not None and amount > MAX_USABLE_CREDITS


def _stated(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    if isinstance(value, str) and (len(value) > 32 or value != value.strip() or "_" in value):
        return None
    try:
        amount = Decimal(value)
    except (InvalidOperation, ValueError):
        return None
    return None if not amount.is_finite() or amount.is_signed() else amount


def credits_text(micro: int) -> str:
    """Return an amount as the shortest exact decimal: `20`, `2.5`."""
    whole, part = divmod(abs(micro), MICRO)
    sign = "-" if micro < 0 else ""
    return f"{sign}{whole}" + (f".{part:06d}".rstrip("0") if part else "")


def dollars_text(micro: int) -> str:
    """Return an amount in dollars with cents, more digits only where needed: `$0.16`, `$0.025`."""
    amount = Decimal(micro) / (MICRO * CREDITS_PER_USD)
    text = f"{amount:.8f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"


def priced_text(micro: int) -> str:
    """Return an amount for a person: `16 credits ($0.16)`."""
    unit = "credit" if micro == MICRO else "credits"
    return f"{credits_text(micro)} {unit} ({dollars_text(micro)})"
