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

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features

from dml_jax import names
from dml_jax.data.base import SPLITS, ArrayReader, Images, Source

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
    """A class: the characters that look alike, and in which faces it is drawn by which of them.

    Attributes:
      characters: in ascending order; the first one names the class.
      drawn: (face, character) pairs, a face per image.
    """

    characters: str
    drawn: tuple[tuple[str, str], ...]


def load(split: str, *, size: int = 32, classes: int | None = None, seed: int = 0) -> Source:
    """White letters on black, uint8 `[size, size, 1]`; 12 to 16 images a class.

    About half of the classes are train, a tenth val, the rest test, by a hash of (seed, character), so that a
    class stays where it is when fonts change others. The seed also decides turn, scale and shift of every
    image. A split is drawn once and kept under DML_JAX_CACHE, by default ~/.cache/dml_jax, in a file named
    after everything that the images depend on; it is drawn anew in every process where that folder cannot be
    written.

    Args:
      split: train, val or test.
      size: side of the images in pixels.
      classes: at most so many classes of the split, for tests; all if None.
      seed: of splits and jitter.

    Raises:
      ValueError: an unknown split, a size below 8, classes below 1.
    """
    if split not in SPLITS:
        raise names.unknown("split of glyphs:", split, SPLITS)
    if size < 8:
        raise ValueError(f"glyphs: size={size}; at least 8 pixels are accepted")
    if classes is not None and classes < 1:
        raise ValueError(f"glyphs: classes={classes}; None (all) or at least 1 is accepted")
    chosen = [x for x in letters() if _split_of(x, seed) == split][:classes]
    drawn = [(label, *pair) for label, x in enumerate(chosen) for pair in x.drawn]
    key = _digest("images", size, seed, [pair[1:] for pair in drawn], features.version("freetype2"))
    images = _read(key, len(drawn), size)
    if images is None:
        images = render([pair[1:] for pair in drawn], size=size, seed=seed)
        _write(key, images=images)
    return Images(
        labels=np.array([label for label, _, _ in drawn], np.int64),
        class_names=tuple(x.characters[0] for x in chosen),
        names=[f"{c} (U+{ord(c):04X}) in {face}" for _, face, c in drawn],
        read=ArrayReader(images),
    )


@functools.cache
def letters() -> tuple[Letter, ...]:
    """The classes of all splits, by first character.

    A letter (Unicode category L) counts where at least 12 faces with 500 or more letters have it. Letters
    whose outlines coincide are one class (see SAME_SHARE): else Latin A, Greek Alpha and Cyrillic A would be
    three labels of one shape. Faces in which two different classes coincide are left out of both.
    """
    key = _digest("letters", MIN_FACES, SAME_SHARE, _MIN_LETTERS)
    kept = _folder() / f"{key}.json"
    try:
        table = json.loads(kept.read_text(encoding="utf-8"))
        return tuple(Letter(c, tuple((f, x) for f, x in drawn)) for c, drawn in table)
    except (OSError, ValueError):
        found = _find_letters()
    content = json.dumps([[x.characters, x.drawn] for x in found]).encode()
    _keep(kept, content)
    return found


def render(
    drawn: Sequence[tuple[str, str]], *, size: int, seed: int | None
) -> UInt8[np.ndarray, "n size size 1"]:
    """Images of (face, character) pairs; turned, scaled and moved by the seed, or not at all if None.

    The letter is drawn four times as large, centred across, on a fixed baseline; then transformed and scaled
    down.
    """
    big = size * _OVERSAMPLING
    faces = {
        face: ImageFont.truetype(
            _faces()[face], round(_EM * big), layout_engine=ImageFont.Layout.BASIC
        )
        for face in {face for face, _ in drawn}
    }
    order = {face: i for i, face in enumerate(_faces())}
    images = np.zeros((len(drawn), size, size, 1), np.uint8)
    for i, (face, character) in enumerate(drawn):
        canvas = Image.new("L", (big, big))
        left, _, right, _ = faces[face].getbbox(character, anchor="ls")
        origin = (round((big - left - right) / 2), round(_BASELINE * big))
        ImageDraw.Draw(canvas).text(origin, character, fill=255, font=faces[face], anchor="ls")
        if seed is not None:
            matrix = _jitter(big, seed, ord(character), order[face])
            canvas = canvas.transform(
                canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
            )
        images[i, :, :, 0] = np.asarray(canvas.reduce(_OVERSAMPLING))
    return images


def _jitter(side: int, seed: int, character: int, face: int) -> tuple[float, ...]:
    """The inverse affine map of a random turn, scale and shift about the centre, as Pillow wants it."""
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, character, face]))
    turn, scale, right, down = rng.uniform(-1, 1, 4)
    angle, zoom = math.radians(_TURN * turn), 1 + _SCALE * scale
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    centre = side / 2
    x, y = centre + _SHIFT * side * right, centre + _SHIFT * side * down
    return cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y


@functools.cache
def _faces() -> dict[str, str]:
    """Face name -> font file, of the text faces."""
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
    outlines = {face: dict(_outlines(path)) for face, path in _faces().items()}
    having = Counter(c for face in outlines.values() for c in face)
    candidates = sorted(c for c, count in having.items() if count >= MIN_FACES)

    same: Counter[tuple[int, int]] = Counter()
    for face in outlines.values():
        alike = defaultdict(list)
        for c in candidates:
            if c in face:
                alike[face[c]].append(c)
        same.update(pair for group in alike.values() for pair in combinations(group, 2))
    root = {c: c for c in candidates}
    for (a, b), count in sorted(same.items()):
        if count >= SAME_SHARE * sum(a in face and b in face for face in outlines.values()):
            low, high = sorted((_find(root, a), _find(root, b)))
            root[high] = low
    groups = defaultdict(list)
    for c in candidates:
        groups[_find(root, c)].append(c)

    drawn: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for name, face in outlines.items():
        first = {r: next((c for c in group if c in face), None) for r, group in groups.items()}
        shapes = Counter(face[c] for c in first.values() if c is not None)
        for r, chosen in first.items():
            if chosen is not None and shapes[face[chosen]] == 1:
                drawn[r].append((name, chr(chosen)))
    return tuple(
        Letter("".join(map(chr, groups[r])), tuple(drawn[r]))
        for r in sorted(groups)
        if len(drawn[r]) >= MIN_FACES
    )


def _find(root: dict[int, int], c: int) -> int:
    while root[c] != c:
        root[c] = root[root[c]]
        c = root[c]
    return c


def _outlines(path: str) -> Iterator[tuple[int, bytes]]:
    """Each letter of a font with a digest of its outline, wherever that stands across the line."""
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
    at = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
    return "train" if at < 0.5 else "val" if at < 0.6 else "test"


def _digest(*what: object) -> str:
    state = hashlib.sha256(repr((_FORMAT, what)).encode())
    for path in _faces().values():
        state.update(Path(path).read_bytes())
    return f"glyphs-{what[0]}-{state.hexdigest()[:24]}"


def _folder() -> Path:
    return Path(os.environ.get("DML_JAX_CACHE") or "~/.cache/dml_jax").expanduser()


def _read(key: str, count: int, size: int) -> np.ndarray | None:
    try:
        images = np.load(_folder() / f"{key}.npz")["images"]
    # A file that was cut off or overwritten by something else is drawn again.
    except Exception:
        return None
    return images if images.shape == (count, size, size, 1) else None


def _write(key: str, images: np.ndarray) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, images=images)
    _keep(_folder() / f"{key}.npz", file.getvalue())


def _keep(path: Path, content: bytes) -> None:
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
