"""The pixels of a file are Pillow's, whichever library decodes it, and so is what is said of a damaged one."""

import io
import tarfile

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from dml_jax import data
from dml_jax.data import decoding
from dml_jax.data.decoding import decode
from dml_jax.errors import UserError

ORIENTATION = 0x0112


def photo(height, width, mode="RGB", seed=0):
    """A gradient with noise: what upsampling and rounding do to it is seen."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


def by_pillow(encoded, channels):
    with Image.open(io.BytesIO(encoded)) as image:
        upright = ImageOps.exif_transpose(image)
        array = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    return array[..., None] if channels == 1 else array


def outcome(encoded, channels=3):
    """The pixels, or the error's type and message."""
    try:
        return decode(encoded, channels=channels).tobytes()
    except Exception as error:
        return type(error), str(error)


@pytest.fixture
def decoded_by(monkeypatch):
    """How often simplejpeg gave pixels, and how often it refused."""
    calls = {"simplejpeg": 0, "refused": 0}
    real = simplejpeg.decode_jpeg

    def noting(*args, **options):
        try:
            pixels = real(*args, **options)
        except ValueError:
            calls["refused"] += 1
            raise
        calls["simplejpeg"] += 1
        return pixels

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", noting)
    return calls


@pytest.fixture
def pillow_alone(monkeypatch):
    """A function that decodes without simplejpeg."""

    def run(*args):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_jpeg_pixels", lambda *_: None)
            return outcome(*args)

    return run


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2, "4:1:1"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(decoded_by, mode, subsampling, progressive):
    for height, width in ((1, 1), (7, 9), (33, 47), (64, 80)):
        for quality in (30, 95):
            encoded = jpeg(
                photo(height, width, mode),
                subsampling=subsampling,
                progressive=progressive,
                quality=quality,
            )
            for channels in (1, 3):
                made = decode(encoded, channels=channels)
                np.testing.assert_array_equal(made, by_pillow(encoded, channels))
                assert made.dtype == np.uint8 and made.shape == (height, width, channels)
                assert made.flags.writeable and made.flags.c_contiguous
    assert decoded_by == {"simplejpeg": 16, "refused": 0}


def test_kinds_of_jpeg(decoded_by):
    image = photo(40, 50)
    kinds = {
        "RGB kept": jpeg(image, keep_rgb=True),
        "restart markers": jpeg(image, restart_marker_blocks=3),
        "two pictures": jpeg(
            image, format="MPO", save_all=True, append_images=[photo(40, 50, seed=1)]
        ),
        "bytes after the end": jpeg(image) + bytes(100),
    }
    for kind, encoded in kinds.items():
        np.testing.assert_array_equal(decode(encoded, channels=3), by_pillow(encoded, 3), kind)
    assert decoded_by == {"simplejpeg": 4, "refused": 0}
    # The two convert CMYK in ways of their own.
    ink = jpeg(photo(40, 50, "CMYK"))
    np.testing.assert_array_equal(decode(ink, channels=3), by_pillow(ink, 3))
    assert (simplejpeg.decode_jpeg(ink) != by_pillow(ink, 3)).any()
    assert decoded_by["simplejpeg"] == 5  # the line above


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_are_upright(decoded_by, mode):
    """All eight orientations, and one that does not exist."""
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        encoded = jpeg(photo(20, 30, mode), exif=exif)
        made = decode(encoded, channels=3)
        np.testing.assert_array_equal(made, by_pillow(encoded, 3))
        assert made.shape == ((30, 20, 3) if 5 <= orientation <= 8 else (20, 30, 3))
    assert decoded_by == {"simplejpeg": 9, "refused": 0}


def test_resized_pixels():
    encoded = jpeg(photo(40, 50))
    small = decode(encoded, channels=1, size=8)
    assert small.shape == (8, 8, 1)
    whole = Image.fromarray(by_pillow(encoded, 1)[..., 0])
    expected = np.asarray(whole.resize((8, 8), Image.Resampling.BOX))
    np.testing.assert_array_equal(small[..., 0], expected)


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_damaged_files_are_what_pillow_says(decoded_by, pillow_alone, mode, kind):
    """Cut off anywhere, bytes changed, taken out and put in: the same pixels, or the same error."""
    whole = jpeg(photo(33, 47, mode), **kind)
    rng = np.random.default_rng(0)
    damaged = [whole[: len(whole) * i // 20] for i in range(1, 20)]
    damaged += [whole[:-i] for i in range(1, 8)] + [whole[:-2] + bytes(5)]
    for _ in range(40):
        changed, at = bytearray(whole), int(rng.integers(2, len(whole) - 40))
        changed[at] = int(rng.integers(256))
        damaged += [
            bytes(changed),
            whole[:at] + whole[at + 17 :],
            whole[:at] + bytes(9) + whole[at:],
        ]
    outcomes = [outcome(encoded) for encoded in damaged]
    assert outcomes == [pillow_alone(encoded) for encoded in damaged]
    cut = outcomes[17]  # within the pixels
    assert cut[0] is OSError and cut[1].startswith("image file is truncated")
    # simplejpeg refused some that Pillow took, and gave some pixels itself.
    assert decoded_by["refused"] > 20 and decoded_by["simplejpeg"] > 0
    assert any(isinstance(x, bytes) for x in outcomes)


def test_a_cut_file_would_be_half_grey_without_strict():
    """What `strict` is for: libjpeg alone fills up what is missing, with a warning."""
    whole = jpeg(photo(64, 80))
    filled = simplejpeg.decode_jpeg(whole[: len(whole) // 2], strict=False)
    assert filled.shape == (64, 80, 3) and np.ptp(filled[-8:]) < 10
    with pytest.raises(OSError, match="image file is truncated"):
        decode(whole[: len(whole) // 2], channels=3)


def test_min_side(tmp_path):
    """The smallest eighth, up to a half, at which both sides are long enough; the picture is the same."""
    encoded = jpeg(photo(240, 320), quality=95)
    whole = decode(encoded, channels=3)
    sizes = {120: (120, 160), 121: (240, 320), 90: (90, 120), 30: (30, 40), 5: (30, 40)}
    for side, size in sizes.items():
        made = decode(encoded, channels=3, min_side=side)
        assert made.shape == (*size, 3)
        by_area = np.asarray(Image.fromarray(whole).resize(size[::-1], Image.Resampling.BOX))
        assert np.abs(made.astype(int) - by_area).mean() < 3
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    assert decode(jpeg(photo(240, 320), exif=turned), channels=1, min_side=60).shape == (80, 60, 1)
    assert decode(jpeg(photo(40, 300)), channels=3, min_side=64).shape == (40, 300, 3)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(encoded)
    (tmp_path / "a" / "2.png").write_bytes(jpeg(photo(240, 320), format="PNG"))
    source = data.load("folder", "all", path=tmp_path, min_side=64)
    assert [source[i]["image"].shape for i in (0, 1)] == [(90, 120, 3), (240, 320, 3)]
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,split\na/1.jpg,x,train\n")
    assert data.load("folder", "train", path=listed, min_side=30)[0]["image"].shape == (30, 40, 3)
    with pytest.raises(UserError, match="min_side"):
        data.load("folder", "all", path=tmp_path, min_side=0)


def test_real_photographs(test_data, decoded_by):
    path = test_data / "grocery_store" / "grocery_store_256.tar"
    if not path.exists():
        pytest.skip("no Grocery Store")
    with tarfile.open(path) as tar:
        photos = [m for m in tar if m.name.endswith(".jpg")][::100]
        for member in photos:
            encoded = tar.extractfile(member).read()
            np.testing.assert_array_equal(decode(encoded, channels=3), by_pillow(encoded, 3))
    assert decoded_by == {"simplejpeg": len(photos), "refused": 0} and photos
