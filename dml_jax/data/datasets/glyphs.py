"""The built-in data set: letters of many scripts, drawn with the fonts that matplotlib ships.

A class is a letter, an image is that letter in one typeface, slightly turned, scaled and moved. It needs no
download, so that a first run, the tests and a bug report can all use the same images.
"""

import functools
import hashlib
import io
import json
import logging
import math
import os
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features

from dml_jax import streams
from dml_jax.data.base import ArrayReader, Images, Source
from dml_jax.parameters import Interval, NonNegativeInt, PositiveInt, checked

MIN_FACES = 12
SAME_SHARE = 0.25
"""Two letters are one class where their outlines coincide in at least this share of the faces that have both.

Small capitals, italic Cyrillic and the like coincide with another letter in one or two faces only (italic te
with m): there the letters stay apart, and the images of those faces are left out of both.
"""

_MIN_LETTERS = 500  # leaves out the symbol fonts and the fonts of TeX, which have fewer than 70
_OVERSAMPLING = 4
_EM, _BASELINE = 0.66, 0.73  # of the image's side: room for stacked accents above and tails below
_TURN, _SCALE, _SHIFT = 8.0, 0.1, 0.06  # largest jitter: degrees, share, share of the side
_FORMAT = 1  # to be raised when the same parameters give other images

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """A class: the characters that look alike, and the character that each face draws it by.

    Attributes:
      characters: the characters in ascending order; the first one names the class.
      glyphs: (face, character) pairs, one for each image.
    """

    characters: str
    glyphs: tuple[tuple[str, str], ...]


@checked("data set")
def glyphs(
    split: Literal["train", "val", "test"],
    *,
    size: Annotated[int, Interval(8, closed_low=True)] = 32,
    classes: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
) -> Source:
    """Draws white letters on black, uint8 `[size, size, 1]`; 12 to 16 images a class.

    About half of the classes are train, a tenth val, the rest test, by a hash of (seed, character), so that a class
    stays where it is when fonts change others. The seed also decides turn, scale and shift of every image. A split is
    drawn once and kept under DML_JAX_CACHE, by default ~/.cache/dml_jax, in a file named after everything that the
    images depend on; it is drawn anew in every process where that folder cannot be written.

    Args:
      split: "train", "val" or "test".
      size: the side of the images in pixels, at least 8.
      classes: at most so many classes of the split, for tests; all if None.
      seed: of splits and jitter.

    Raises:
      UserError: a value out of range.

    Example:
      >>> source = glyphs("test", size=8, classes=2)
      >>> source.class_names, source[0]["image"].shape
      (('D', 'E'), (8, 8, 1))
    """
    chosen = [x for x in letters() if _split_of(x, seed) == split][:classes]
    drawn = [(label, *pair) for label, x in enumerate(chosen) for pair in x.glyphs]
    key = _digest("images", size, seed, [pair[1:] for pair in drawn], features.version("freetype2"))
    images = _read_images(key, len(drawn), size)
    if images is None:
        images = render([pair[1:] for pair in drawn], size=size, seed=seed)
        _write_images(key, images)
    return Images(
        labels=np.array([label for label, _, _ in drawn], np.int64),
        class_names=tuple(x.characters[0] for x in chosen),
        names=[f"{c} (U+{ord(c):04X}) in {face}" for _, face, c in drawn],
        read=ArrayReader(images),
    )


@functools.cache
def letters() -> tuple[Letter, ...]:
    """Finds the classes of all splits, ordered by their first characters.

    A letter (Unicode category L) counts where at least 12 faces with 500 or more letters have it. Letters whose
    outlines coincide are one class (see SAME_SHARE): else Latin A, Greek Alpha and Cyrillic A would be three labels of
    one shape. Faces in which two different classes coincide are left out of both.
    """
    key = _digest("letters", MIN_FACES, SAME_SHARE, _MIN_LETTERS)
    file = _cache_folder() / f"{key}.json"
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        return tuple(Letter(c, tuple((f, x) for f, x in pairs)) for c, pairs in table)
    except (OSError, ValueError):
        found = _find_letters()
    _write_cache(file, json.dumps([[x.characters, x.glyphs] for x in found]).encode())
    return found


def render(
    pairs: Sequence[tuple[str, str]], *, size: int, seed: int | None
) -> UInt8[np.ndarray, "n size size 1"]:
    """Draws characters in faces.

    A letter is drawn four times as large, centred across, on a fixed baseline; then it is transformed and scaled down.

    Args:
      pairs: (face, character) pairs.
      size: the side of the images in pixels.
      seed: of turn, scale and shift; None leaves the letters as they are.

    Example:
      >>> render([("DejaVuSans", "A")], size=8, seed=None).shape
      (1, 8, 8, 1)
    """
    side = size * _OVERSAMPLING
    faces = {
        face: ImageFont.truetype(
            _font_files()[face], round(_EM * side), layout_engine=ImageFont.Layout.BASIC
        )
        for face in {face for face, _ in pairs}
    }
    order = {face: i for i, face in enumerate(_font_files())}
    images = np.zeros((len(pairs), size, size, 1), np.uint8)
    for i, (face, character) in enumerate(pairs):
        canvas = Image.new("L", (side, side))
        left, _, right, _ = faces[face].getbbox(character, anchor="ls")
        origin = (round((side - left - right) / 2), round(_BASELINE * side))
        ImageDraw.Draw(canvas).text(origin, character, fill=255, font=faces[face], anchor="ls")
        if seed is not None:
            rng = streams.generator("draw_glyphs", seed, step=ord(character), place=order[face])
            canvas = canvas.transform(
                canvas.size, Image.Transform.AFFINE, _jitter(side, rng), Image.Resampling.BILINEAR
            )
        images[i, :, :, 0] = np.asarray(canvas.reduce(_OVERSAMPLING))
    return images


def _jitter(side: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Returns the inverse affine map of a random turn, scale and shift about the centre, as Pillow wants it."""
    turn, scale, right, down = rng.uniform(-1, 1, 4)
    angle, zoom = math.radians(_TURN * turn), 1 + _SCALE * scale
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    centre = side / 2
    x, y = centre + _SHIFT * side * right, centre + _SHIFT * side * down
    return cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y


@functools.cache
def _font_files() -> dict[str, str]:
    """Returns the font files of the text faces by the faces' names."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = {}
    for path in sorted(folder.glob("*.ttf")):
        if path.stem.startswith("LastResort"):  # draws a box for every character there is
            continue
        with TTFont(path, lazy=True) as font:
            if sum(map(_is_letter, font.getBestCmap())) >= _MIN_LETTERS:
                faces[path.stem] = str(path)
    return faces


def _is_letter(character: int) -> bool:
    return unicodedata.category(chr(character)).startswith("L")


def _find_letters() -> tuple[Letter, ...]:
    """Groups the letters of the fonts into classes of one shape."""
    outlines = {face: dict(_outlines(path)) for face, path in _font_files().items()}
    having = Counter(c for face in outlines.values() for c in face)
    candidates = sorted(c for c, count in having.items() if count >= MIN_FACES)

    # In how many faces two characters coincide.
    same: Counter[tuple[int, int]] = Counter()
    for face in outlines.values():
        by_shape = defaultdict(list)
        for c in candidates:
            if c in face:
                by_shape[face[c]].append(c)
        same.update(pair for group in by_shape.values() for pair in combinations(group, 2))
    root = {c: c for c in candidates}
    for (a, b), count in sorted(same.items()):
        if count >= SAME_SHARE * sum(a in face and b in face for face in outlines.values()):
            low, high = sorted((_find(root, a), _find(root, b)))
            root[high] = low
    groups = defaultdict(list)
    for c in candidates:
        groups[_find(root, c)].append(c)

    glyphs_of: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for name, face in outlines.items():
        first = {r: next((c for c in group if c in face), None) for r, group in groups.items()}
        shapes = Counter(face[c] for c in first.values() if c is not None)
        for r, chosen in first.items():
            if chosen is not None and shapes[face[chosen]] == 1:
                glyphs_of[r].append((name, chr(chosen)))
    return tuple(
        Letter("".join(map(chr, groups[r])), tuple(glyphs_of[r]))
        for r in sorted(groups)
        if len(glyphs_of[r]) >= MIN_FACES
    )


def _find(root: dict[int, int], c: int) -> int:
    """Returns the representative of a character's class (union-find with path halving)."""
    while root[c] != c:
        root[c] = root[root[c]]
        c = root[c]
    return c


def _outlines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields the letters of a font, each with a digest of its outline that does not depend on where it begins."""
    with TTFont(path) as font:
        glyf = font["glyf"]
        for character, name in sorted(font.getBestCmap().items()):
            if not _is_letter(character) or name == ".notdef":
                continue
            points, ends, on_curve = glyf[name].getCoordinates(glyf)
            if not len(points):
                continue
            left = min(x for x, _ in points)
            shape = [(x - left, y, on & 1) for (x, y), on in zip(points, on_curve, strict=True)]
            starts = [0, *(e + 1 for e in ends[:-1])]
            contours = sorted(shape[a : e + 1] for a, e in zip(starts, ends, strict=True))
            yield character, hashlib.blake2b(repr(contours).encode(), digest_size=16).digest()


def _split_of(letter: Letter, seed: int) -> str:
    key = f"{seed}:{ord(letter.characters[0])}".encode()
    uniform = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
    return "train" if uniform < 0.5 else "val" if uniform < 0.6 else "test"


def _digest(*what: object) -> str:
    """Names a cache file after everything that its content depends on, the fonts included."""
    state = hashlib.sha256(repr((_FORMAT, what)).encode())
    for path in _font_files().values():
        state.update(Path(path).read_bytes())
    return f"glyphs-{what[0]}-{state.hexdigest()[:24]}"


def _cache_folder() -> Path:
    return Path(os.environ.get("DML_JAX_CACHE") or "~/.cache/dml_jax").expanduser()


def _read_images(key: str, count: int, size: int) -> UInt8[np.ndarray, "n size size 1"] | None:
    try:
        images: np.ndarray = np.load(_cache_folder() / f"{key}.npz")["images"]
    # A file that was cut off or overwritten by something else is drawn again.
    except Exception:
        return None
    return images if images.shape == (count, size, size, 1) else None


def _write_images(key: str, images: UInt8[np.ndarray, "n size size 1"]) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, images=images)
    _write_cache(_cache_folder() / f"{key}.npz", file.getvalue())


def _write_cache(path: Path, content: bytes) -> None:
    """Writes a cache file in one move, so that no reader ever sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="part-") as folder:
            part = Path(folder) / path.name
            part.write_bytes(content)
            os.replace(part, path)
    except OSError as error:
        _log.warning(
            "glyphs: nothing kept in %s (%s); they are drawn anew every time", path.parent, error
        )
