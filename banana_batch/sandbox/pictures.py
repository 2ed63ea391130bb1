"""A PNG that shows its prompt: pleasant, of the documented size, and cheap.

Rule 1: the same subject gives the same bytes, so a picture can be drawn again at any time.
Rule 2: sixteen colours, four bits a pixel: a picture of 1024 x 1024 takes a few milliseconds, encoding included.

The palette is one ramp from a light tone to a darker one (the scene), and one from the card's colour to the ink's:
edges of letters are blended by the number of the colour, so each ramp has to be a ramp.
"""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from colorsys import hls_to_rgb
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from banana_batch.capabilities import pixels
from banana_batch.text import printable

_SCENE_COLOURS: Final = 9
_CARD: Final = 9
_INK: Final = 15
_MAX_PROMPT_CHARS: Final = 700
_FALLBACK_PIXELS: Final = (1024, 1024)
_PNG_HEADER_BYTES: Final = 33  # signature and IHDR, after which further chunks may stand

Scene = Callable[[ImageDraw.ImageDraw, int, int, Sequence[float]], None]


def draw(
    prompt: str,
    model: str,
    aspect_ratio: str | None = None,
    image_size: str | None = None,
    details: Sequence[str] = (),
    *,
    jpeg: bool = False,
) -> bytes:
    """Return a picture of the documented pixel size, with the prompt and the parameters on it.

    Args:
        details: Further words for the line of parameters.
        jpeg: JPEG instead of PNG, for servers that mislabel.
    """
    width, height = pixels(model, aspect_ratio, image_size) or _FALLBACK_PIXELS
    dice = _dice(prompt)
    image = Image.new("P", (width, height))
    palette = _palette(dice[0], dice[1])
    image.putpalette(palette)
    canvas = ImageDraw.Draw(image)
    canvas.fontmode = "L"  # smooth letters; off by default where colours are numbered
    _SCENES[int(dice[2] * len(_SCENES))](canvas, width, height, dice[3:])
    words = [model, aspect_ratio or "1:1", image_size or "1K", *details]
    _label(canvas, width, height, printable(prompt, _MAX_PROMPT_CHARS), " · ".join(words))
    if not jpeg:
        return _png(image, palette)
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=85)
    return out.getvalue()


def _png(image: Image.Image, palette: Sequence[int]) -> bytes:
    """Encode sixteen colours at four bits a pixel, in about half of the time that Pillow takes.

    A row of a PNG starts with the number of its filter, 0 for none: two pixels of colour 0, put in front of each.
    """
    width, height = image.size
    rows = image.crop((-2, 0, width, height)).tobytes("raw", "P;4")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x04\x03\0\0\0"
    chunks = ((b"IHDR", header), (b"PLTE", bytes(palette)), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def plain(model: str, aspect_ratio: str | None, image_size: str | None, comment: str) -> bytes:
    """Return a one-colour PNG of the documented size; `comment` makes its bytes its own. Costs next to nothing."""
    blank = _blank(*(pixels(model, aspect_ratio, image_size) or _FALLBACK_PIXELS))
    chunk = _chunk(b"tEXt", b"Comment\0" + comment.encode("latin-1", "replace"))
    return blank[:_PNG_HEADER_BYTES] + chunk + blank[_PNG_HEADER_BYTES:]


@lru_cache(maxsize=32)
def _blank(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (width, height), 1).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _dice(prompt: str) -> list[float]:
    digest = blake2b(prompt.encode("utf-8", "replace"), digest_size=48).digest()
    return [int.from_bytes(digest[at : at + 2], "big") / 65536 for at in range(0, len(digest), 2)]


def _palette(hue: float, turn: float) -> list[int]:
    """Return sixteen colours: nine of the scene, seven from the card's paper to its ink."""
    far = hue + 0.06 + 0.14 * turn
    colours = []
    for step in range(_SCENE_COLOURS):
        part = step / (_SCENE_COLOURS - 1)
        colours.append(hls_to_rgb((hue + (far - hue) * part) % 1, 0.91 - 0.42 * part, 0.62 - 0.12 * part))
    paper, ink = hls_to_rgb(hue % 1, 0.97, 0.55), hls_to_rgb(far % 1, 0.20, 0.40)
    for step in range(_INK - _CARD + 1):
        part = step / (_INK - _CARD)
        colours.append((*(a + (b - a) * part for a, b in zip(paper, ink, strict=True)),))  # type: ignore[arg-type]
    return [round(255 * channel) for colour in colours for channel in colour]


def _hills(canvas: ImageDraw.ImageDraw, width: int, height: int, dice: Sequence[float]) -> None:
    """Draw a sun over rows of hills, the nearer the darker."""
    _sky(canvas, width, height)
    radius = min(width, height) * (0.10 + 0.06 * dice[0])
    _disc(canvas, width * (0.2 + 0.6 * dice[1]), height * 0.24, radius * 1.35, 1)
    _disc(canvas, width * (0.2 + 0.6 * dice[1]), height * 0.24, radius, 0)
    for row in range(5):
        base, swing = height * (0.36 + 0.11 * row), height * (0.03 + 0.04 * dice[2 + row])
        phase, waves = math.tau * dice[7 + row], 0.6 + 1.1 * dice[12 + row]
        crest = [(width * x / 48, base + swing * math.sin(phase + math.tau * waves * x / 48)) for x in range(49)]
        canvas.polygon([*crest, (width, height), (0, height)], fill=4 + row)


def _rings(canvas: ImageDraw.ImageDraw, width: int, height: int, dice: Sequence[float]) -> None:
    """Draw rings around a point, like a pond after the stone."""
    canvas.rectangle((0, 0, width, height), fill=8)
    x, y = width * (0.25 + 0.5 * dice[0]), height * (0.2 + 0.25 * dice[1])
    reach = math.hypot(max(x, width - x), max(y, height - y))
    for step in range(8):
        _disc(canvas, x, y, reach * (1 - step / 8) ** (1.1 + 0.5 * dice[2]), 7 - step)


def _bubbles(canvas: ImageDraw.ImageDraw, width: int, height: int, dice: Sequence[float]) -> None:
    """Draw discs of several sizes, large ones first."""
    _sky(canvas, width, height)
    side = min(width, height)
    for step in range(9):
        radius = side * (0.30 - 0.028 * step)
        x, y = width * dice[step], height * 0.78 * dice[9 + step]
        tone = 2 + (step * 5) % 7
        _disc(canvas, x, y, radius, tone)
        _disc(canvas, x - radius * 0.12, y - radius * 0.12, radius * 0.78, tone - 1)


def _fan(canvas: ImageDraw.ImageDraw, width: int, height: int, dice: Sequence[float]) -> None:
    """Draw rays from a low sun."""
    canvas.rectangle((0, 0, width, height), fill=3)
    x, y, reach = width * (0.3 + 0.4 * dice[0]), height * 0.66, math.hypot(width, height)
    rays = 18 + 2 * int(6 * dice[1])
    for ray in range(0, rays, 2):
        ends = [math.tau * (ray + dice[2] + side) / rays for side in (0, 1)]
        canvas.polygon([(x, y), *((x + reach * math.cos(a), y + reach * math.sin(a)) for a in ends)], fill=2)
    for step, tone in enumerate((5, 4, 1, 0)):
        _disc(canvas, x, y, min(width, height) * (0.34 - 0.06 * step), tone)


_SCENES: Final[tuple[Scene, ...]] = (_hills, _rings, _bubbles, _fan)


def _sky(canvas: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for band in range(4):
        canvas.rectangle((0, height * band // 4, width, height), fill=band)


def _disc(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, tone: int) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font


@lru_cache(maxsize=64)
def _char_width(size: int) -> float:
    sample = "the quick brown fox jumps over lazy dogs, AND SOME MORE"
    return _font(size).getlength(sample) / len(sample)


def _label(canvas: ImageDraw.ImageDraw, width: int, height: int, prompt: str, words: str) -> None:
    """Put the card at the bottom: the prompt, wrapped, and the parameters below it."""
    margin = max(12, min(width, height) // 24)
    room_x, room_y = width - 4 * margin, height * 0.62 - 4 * margin
    size, lines = _fit(prompt, room_x, room_y, largest=max(14, min(width, height) // 22))
    small = max(11, size * 2 // 3)
    below = _wrap(words, max(1, int(room_x / _char_width(small))))
    leading, small_leading = size * 4 // 3, small * 4 // 3
    top = height - 3 * margin - leading * len(lines) - small_leading * len(below) - small // 2
    canvas.rounded_rectangle((margin, top, width - margin, height - margin), radius=margin, fill=_CARD)
    y = top + margin
    for line in lines:
        canvas.text((2 * margin, y), line, fill=_INK, font=_font(size))
        y += leading
    for line in below:
        canvas.text((2 * margin, y + small // 2), line, fill=_INK - 2, font=_font(small))
        y += small_leading


def _fit(prompt: str, room_x: float, room_y: float, largest: int) -> tuple[int, list[str]]:
    """Return the largest letters that let the prompt fit, and its lines; what can't fit is cut."""
    size = largest
    while True:
        lines = _wrap(prompt, max(1, int(room_x / _char_width(size))))
        most = max(1, int(room_y // (size * 4 / 3)))
        if len(lines) <= most:
            return size, lines
        if size <= largest // 2:
            return size, [*lines[: most - 1], lines[most - 1][:-1] + "…"]
        size = max(largest // 2, size * 4 // 5)


def _wrap(text: str, chars: int) -> list[str]:
    """Break at spaces; words longer than a line are broken where it ends."""
    lines: list[str] = [""]
    for word in text.split():
        rest = word
        if lines[-1] and len(lines[-1]) + 1 + len(rest) <= chars:
            lines[-1] += " " + rest
            continue
        if lines[-1]:
            lines.append("")
        while len(rest) > chars:
            lines[-1] = rest[:chars]
            lines.append("")
            rest = rest[chars:]
        lines[-1] = rest
    return lines
