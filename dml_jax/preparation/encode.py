"""From the bytes of an image file to those that are kept."""

import io

from PIL import ExifTags, Image

from dml_jax.data.decoding import decode


def encode(encoded: bytes, min_side: int | None, quality: int) -> bytes:
    """Returns an image as it is kept: its own bytes, or a JPEG file whose shorter side has `min_side` pixels.

    An image that is no larger keeps its own bytes. It is scaled as it lies in the file, and the new file says the same
    of its orientation, so that both readings of it stay.

    Args:
      encoded: the bytes of the file.
      min_side: of the shorter side; None keeps every image as it is.
      quality: of the JPEG file, from 1 to 100.

    Raises:
      Exception: what decoders raise where the image cannot be decoded; the image is decoded in any case.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (400, 300)).save(file, "PNG")
    >>> Image.open(io.BytesIO(encode(file.getvalue(), 64, 90))).size
    (85, 64)
    """
    pixels = decode(encoded, channels=3, exif=False)
    height, width = pixels.shape[:2]
    if min_side is None or min(height, width) <= min_side:
        return encoded
    scale = min_side / min(height, width)
    size = (max(round(width * scale), min_side), max(round(height * scale), min_side))
    with Image.open(io.BytesIO(encoded)) as opened:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        grey = opened.mode in ("1", "L", "I", "I;16")
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    picture = picture.convert("L") if grey else picture
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, exif=exif)
    return file.getvalue()
