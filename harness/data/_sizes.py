"""Whether images are large enough, by their files' headers: nothing is decoded. Free of torch."""

from collections.abc import Iterable, Sequence

from harness.core.errors import UserError
from harness.data._source import Folder


def check_headers(source: Folder, names: Iterable[str], scale: int, least: int, what: str) -> None:
    """Raise UserError like `check_size`. A file that cannot be read is left to decoding, which says what is wrong."""
    from PIL import Image

    for name in names:
        try:
            with Image.open(source.root / name) as image:
                width, height = image.size
        except Exception:  # Pillow's readers raise many kinds for a damaged file
            continue
        check_size(source.show(name), (width, height), scale, least, what)


def check_size(name: str, size: Sequence[int], scale: int, least: int, what: str) -> None:
    """Raise UserError where a large image, made `scale` times smaller, has a side of less than `least` pixels.

    size: width and height. what: a setting or a use, for the message.
    """
    width, height = size
    if min(size) < scale:
        raise UserError(f"data.scale: {name} is too small: {width}x{height} pixels")
    if min(size) // scale < least:
        small = f"{width // scale}x{height // scale}"
        raise UserError(
            f"{what}: {name} is too small: {width}x{height} pixels, made smaller {small}, and {least} are needed"
        )
