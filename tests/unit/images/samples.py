"""Small whole images of each type, made by Pillow or by hand."""

import io
import zlib

from PIL import Image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    """Return a picture that no codec can make trivial."""
    return Image.effect_noise((width, height), 80).convert("RGB")


def encoded(format: str, **options: object) -> bytes:
    """Return the picture in one of Pillow's formats."""
    out = io.BytesIO()
    noise().save(out, format, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(width: int = 64, height: int = 48, data: bytes = b"", *, fill: int = 0) -> bytes:
    """Return a PNG of any size in the header: nothing here decodes it."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    body = chunk(b"IDAT", data or bytes(range(256)))
    filler = b"".join(chunk(b"IDAT", bytes([part % 251]) * 65536) for part in range(fill // 65536))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + filler + chunk(b"IEND", b"")


def animated() -> bytes:
    """Return a GIF of three frames."""
    out = io.BytesIO()
    noise().save(out, "GIF", save_all=True, append_images=[noise(), noise()])
    return out.getvalue()


WHOLE: dict[str, tuple[str, bytes]] = {
    "png": ("image/png", encoded("PNG")),
    "jpeg": ("image/jpeg", encoded("JPEG", quality=90)),
    "jpeg progressive": ("image/jpeg", encoded("JPEG", progressive=True, quality=80)),
    "jpeg restarts": ("image/jpeg", encoded("JPEG", restart_marker_blocks=2)),
    "webp": ("image/webp", encoded("WEBP", quality=80)),
    "webp lossless": ("image/webp", encoded("WEBP", lossless=True)),
    "webp extended": ("image/webp", encoded("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")),
    "gif": ("image/gif", encoded("GIF")),
    "gif animated": ("image/gif", animated()),
}
