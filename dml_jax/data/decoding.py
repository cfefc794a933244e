"""From the bytes of a file to pixels: libjpeg-turbo decodes JPEG without Pillow's copies, Pillow the other formats."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dml_jax.errors import UserError


def decode(
    encoded: bytes,
    *,
    channels: int,
    size: int | None = None,
    min_side: int | None = None,
    exif: bool = True,
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image to uint8 `[H, W, channels]`, upright by its EXIF orientation.

    The pixels are Pillow's. Grey and colour JPEG files that decode without a warning come from simplejpeg, whose
    libjpeg-turbo writes them to an array at once; all others, damaged ones included, are left to Pillow, which raises
    OSError and other exceptions on truncated and other damaged data.

    Args:
      encoded: the bytes of a file in any format that Pillow reads. 16-bit grey is scaled to 8 bits, transparent
        pixels are white, and of several frames the first is taken.
      channels: 1 (grey) or 3 (RGB).
      size: the side to which the image is resized by area averages, without keeping the aspect ratio.
      min_side: grey and colour JPEG files are decoded at 1/8 to 4/8 of their size, the smallest of these at which both
        sides have at least this many pixels; the pixels are then not those of the whole image scaled down. None
        decodes them whole.
      exif: False to leave the image as it lies in the file, whatever its EXIF orientation says.

    Raises:
      UserError: no bytes, a format that Pillow does not read, or floating-point pixels.

    Example:
      >>> file = io.BytesIO()
      >>> Image.new("RGB", (400, 300), "white").save(file, "JPEG")
      >>> decode(file.getvalue(), channels=1).shape
      (300, 400, 1)
      >>> decode(file.getvalue(), channels=3, min_side=64).shape
      (75, 100, 3)
    """
    if not encoded:
        raise UserError("the file is empty")
    try:
        opened = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise UserError("it is not an image that Pillow reads") from None
    with opened:
        pixels = _jpeg_pixels(opened, encoded, min_side)
        if pixels is None:
            opened.load()
            return decoded(opened, channels=channels, size=size, exif=exif)
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1) if exif else 1
    if orientation == 1 and size is None and pixels.shape[-1] == channels:
        return pixels
    picture = to_picture(pixels)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return decoded(picture, channels=channels, size=size)


def _jpeg_pixels(
    opened: Image.Image, encoded: bytes, min_side: int | None
) -> UInt8[np.ndarray, "h w c"] | None:
    """Returns the pixels of a JPEG file as they lie in it; None where Pillow has to decode it.

    Args:
      opened: the file by its header; MPO is what Pillow calls a JPEG file that holds further ones.
      encoded: its bytes.
      min_side: as in `decode`.
    """
    # CMYK is converted in other ways by the two.
    if opened.format not in ("JPEG", "MPO") or opened.mode not in ("L", "RGB"):
        return None
    side = min_side or 0
    colorspace = "GRAY" if opened.mode == "L" else "RGB"
    try:
        # Strict: a warning of libjpeg, as for data that end early or are damaged, is an error. Pillow then decides
        # whether there is an image.
        return simplejpeg.decode_jpeg(
            encoded, colorspace, min_height=side, min_width=side, min_factor=2, strict=True
        )
    except ValueError:
        return None


def to_picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Returns uint8 `[H, W, 1]` (grey) or `[H, W, 3]` (RGB) as a Pillow image.

    Args:
      pixels: the array; the image is a copy of it.

    Example:
      >>> to_picture(np.zeros((3, 4, 1), np.uint8)).mode
      'L'
    """
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def decoded(
    image: Image.Image, *, channels: int, size: int | None = None, exif: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """Returns a Pillow image as `decode` returns that of a file.

    Args:
      image: an image in any mode.
      channels: 1 (grey) or 3 (RGB).
      size: as in `decode`.
      exif: as in `decode`.

    Example:
      >>> decoded(Image.new("L", (4, 3)), channels=3).shape
      (3, 4, 3)
    """
    # Pillow copies an image that is upright, too, and one that is converted to the mode that it has.
    if exif and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise UserError(
            "its pixels are floating-point numbers, whose black and white are not known; 8 or 16 bits are accepted"
        )
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary, often black.
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BOX)
    array = np.array(image, np.uint8)
    return array[..., None] if channels == 1 else array
