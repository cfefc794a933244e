"""Copies and near copies of images within and across splits, and classes that are the same under other names."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np

from dml_jax.data.base import Source
from dml_jax.inspection.hashes import Hashes

# Bits of 64 by which near copies may differ.
RADIUS = 4
# The share of a class's images that have near copies in a class of another split, above which the two are one.
SHARE = 0.5

# A split and the place of an image in it.
Place = tuple[str, int]


@dataclass(frozen=True)
class Pair:
    """Two images that are nearly the same.

    Attributes:
      one: the first image.
      other: the second one.
      bits: by how many of 64 bits their hashes differ; 0 for exact copies.
      exact: True where every pixel is equal.
      mirrored: True where one is the other left to right.
    """

    one: Place
    other: Place
    bits: int
    exact: bool
    mirrored: bool


def pairs_of(found: Mapping[str, Hashes], radius: int = RADIUS) -> list[Pair]:
    """Returns the pairs of images that are copies or near copies of each other, nearest first.

    Pictures without structure have near copies only where they are exact ones.

    Args:
      found: the hashes of the splits.
      radius: by how many of 64 bits near copies may differ; negative for exact copies alone.
    """
    places = [(split, i) for split, h in found.items() for i in np.flatnonzero(h.whole).tolist()]
    if not places:
        return []
    row = lambda name: np.concatenate([getattr(h, name)[h.whole] for h in found.values()])
    pixels, near, mirrored, flat = map(row, ("pixels", "near", "mirrored", "flat"))
    pairs = {key: Pair(places[key[0]], places[key[1]], 0, True, False) for key in _equal(pixels)}
    kept = np.flatnonzero(~flat)
    if radius >= 0 and len(kept):
        index = faiss.IndexBinaryFlat(64)
        index.add(_bytes(near[kept]))
        for queries, is_mirrored in ((near, False), (mirrored, True)):
            # The radius of faiss is exclusive.
            limits, bits, ids = index.range_search(_bytes(queries[kept]), radius + 1)
            first = np.repeat(kept, np.diff(limits.astype(np.int64)))
            for a, b, distance in zip(
                first.tolist(), kept[ids].tolist(), bits.tolist(), strict=True
            ):
                key = (min(a, b), max(a, b))
                if a != b and key not in pairs:
                    pairs[key] = Pair(
                        places[key[0]], places[key[1]], int(distance), False, is_mirrored
                    )
    return sorted(pairs.values(), key=lambda pair: (pair.bits, not pair.exact))


def _equal(pixels: np.ndarray) -> list[tuple[int, int]]:
    """Returns, of each group of equal numbers, the first one with every other."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for place, value in enumerate(pixels.tolist()):
        groups[value].append(place)
    return [(group[0], other) for group in groups.values() for other in group[1:]]


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)


def across(pairs: list[Pair]) -> list[Pair]:
    """Returns the pairs whose images are in different splits.

    Args:
      pairs: any.
    """
    return [pair for pair in pairs if pair.one[0] != pair.other[0]]


def same_classes(sources: Mapping[str, Source], pairs: list[Pair]) -> list[tuple[str, str, str]]:
    """Returns classes of two splits that seem to be one, as (class, class, why).

    More than half of the images of the smaller one have copies or near copies in the other, or the names are the same
    but for case and punctuation.

    Args:
      sources: the splits.
      pairs: what `pairs_of` found.
    """
    found = []
    images: defaultdict[tuple[tuple[str, int], tuple[str, int]], tuple[set[int], set[int]]]
    images = defaultdict(lambda: (set(), set()))
    for pair in across(pairs):
        kinds = [(split, int(sources[split].labels[i])) for split, i in (pair.one, pair.other)]
        images[kinds[0], kinds[1]][0].add(pair.one[1])
        images[kinds[0], kinds[1]][1].add(pair.other[1])
    sizes = {
        split: Counter(np.asarray(source.labels).tolist()) for split, source in sources.items()
    }
    for (one, other), both in images.items():
        shares = [
            len(of) / sizes[split][label]
            for of, (split, label) in zip(both, (one, other), strict=True)
        ]
        names = [f"{split}/{sources[split].class_names[label]}" for split, label in (one, other)]
        if max(shares) > SHARE and one[1] >= 0 and other[1] >= 0:
            found.append(
                (names[0], names[1], f"{max(shares):.0%} of the images of one are in the other")
            )
    splits = list(sources)
    plain = {split: _plain_names(sources[split]) for split in splits}
    for number, split in enumerate(splits):
        for later in splits[number + 1 :]:
            for name in sorted(plain[split].keys() & plain[later].keys()):
                here, there = plain[split][name], plain[later][name]
                if here != there:
                    found.append(
                        (
                            f"{split}/{here}",
                            f"{later}/{there}",
                            "the names are the same but for case and punctuation",
                        )
                    )
    return found


def _plain_names(source: Source) -> dict[str, str]:
    return {re.sub(r"[\W_]+", "", name).casefold(): name for name in source.class_names}
