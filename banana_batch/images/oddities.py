"""What is strange about a whole image and harms nobody: a warning beside a done job."""

from banana_batch.models import PaidImage
from banana_batch.text import bytes_text, printable

from .verify import Whole


def oddities(image: PaidImage, finding: Whole, label: str | None) -> list[str]:
    """Return each oddity as a warning.

    Args:
        label: The Content-Type that came with the bytes; None: none came, or it is no longer known.
    """
    said = []
    if finding.trailing_bytes:
        said.append(f"{bytes_text(finding.trailing_bytes)} after the end of the image")
    if image.expected_pixels is not None and (finding.width, finding.height) != image.expected_pixels:
        expected = "x".join(map(str, image.expected_pixels))
        said.append(f"{finding.width}x{finding.height} pixels instead of {expected}")
    kind = (label or "").partition(";")[0].strip().lower()
    # Hosts that know no type say octet-stream, which is no claim; image/jpg is an old spelling.
    if kind.startswith(("image/", "text/")) and kind.replace("/jpg", "/jpeg") != finding.content_type:
        said.append(f"labelled {printable(kind, 60)}, is {finding.content_type}")
    return said
