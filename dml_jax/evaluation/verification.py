"""Verification: is a pair of one kind? Error rates at a threshold of the distance, over all pairs.

A pair of a query and an item of the gallery is genuine where the item is relevant, an impostor elsewhere; a query's
pair with itself is neither. A pair is accepted where its distance is at most the threshold. Pairs come in blocks,
as often as they are asked for, and are never all in memory: the distances of genuine pairs are kept, those of
impostors counted, in float32.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# OPIS: the false accept rates whose thresholds end the range, and how many thresholds divide it.
CALIBRATION = (0.01, 0.1)
THRESHOLDS = 101


class Block(NamedTuple):
    """The pairs of some queries with the whole gallery."""

    distances: Float[np.ndarray, "b n"]
    genuine: Bool[np.ndarray, "b n"]
    impostor: Bool[np.ndarray, "b n"]
    classes: Int[np.ndarray, " b"]


@dataclass(frozen=True)
class Verification:
    """Genuine distances, and the thresholds at which false accept rates are reached.

    Attributes:
      genuine: float32, ascending.
      impostors: how many.
      thresholds: by false accept rate: the largest rate not above it is reached below this distance.
    """

    genuine: Float[np.ndarray, " m"]
    impostors: int
    thresholds: dict[float, float]

    def true_accept_rate(self, false_accept_rate: float) -> float:
        """TAR: the share of genuine pairs accepted by the largest threshold whose FAR is at most that given.

        The ROC's true positive rate where its false positive rate is at most that. nan without genuine pairs or
        without impostors. FNMR at FMR is 1 - TAR at FAR.
        """
        if not len(self.genuine) or not self.impostors:
            return float("nan")
        end = self.thresholds[false_accept_rate]
        return float(
            np.searchsorted(self.genuine, np.float32(end), side="left") / len(self.genuine)
        )


def verify(
    blocks: Callable[[], Iterator[Block]], false_accept_rates: Sequence[float]
) -> Verification:
    """Reads the blocks twice: order statistics of the impostors from histograms of the bits of their distances.

    Raises: ValueError for a rate that is not between 0 and 1.
    """
    for rate in false_accept_rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"false accept rate {rate}; accepted: 0 to 1")
    genuine: list[np.ndarray] = []
    coarse = np.zeros(1 << 16, np.int64)
    for block in blocks():
        genuine.append(block.distances[block.genuine])
        bits = block.distances[block.impostor].view(np.uint32)
        coarse += np.bincount(bits >> 16, minlength=1 << 16)
    impostors = int(coarse.sum())
    ends = np.cumsum(coarse)
    # Accepting `rank` impostors is allowed: the distance of the next one is out of reach.
    ranks = {rate: int(np.floor(rate * impostors * (1 + 1e-15))) for rate in false_accept_rates}
    places = {rate: int(np.searchsorted(ends, rank, side="right")) for rate, rank in ranks.items()}
    fine = {place: np.zeros(1 << 16, np.int64) for place in places.values() if place < 1 << 16}
    for block in blocks() if fine else ():
        bits = block.distances[block.impostor].view(np.uint32)
        high = bits >> 16
        for place, counts in fine.items():
            counts += np.bincount(bits[high == place] & 0xFFFF, minlength=1 << 16)
    thresholds = {}
    for rate, rank in ranks.items():
        place = places[rate]
        if place == 1 << 16:
            thresholds[rate] = float("inf")
            continue
        before = ends[place] - coarse[place]
        low = np.searchsorted(before + np.cumsum(fine[place]), rank, side="right")
        bits = np.array([(place << 16) + low], np.uint32)
        thresholds[rate] = float(bits.view(np.float32)[0])
    return Verification(np.sort(np.concatenate(genuine)), impostors, thresholds)


def opis(
    blocks: Callable[[], Iterator[Block]],
    found: Verification,
    rates: tuple[float, float] = CALIBRATION,
    thresholds: int = THRESHOLDS,
) -> float:
    """Operating-point-inconsistency score (Zhang et al., ICLR 2024, "Threshold-consistent margin loss", section 3).

    mean_i 1 / (d_max - d_min) integral_{d_min}^{d_max} (U_i(d) - mean_j U_j(d))^2 dd, over classes i, with the
    utility U_i = 2 phi psi / (phi + psi) of the specificity phi (impostor pairs of the class rejected at d) and the
    sensitivity psi (genuine pairs of the class accepted). 0 where one threshold serves all classes alike.
    The range ends where the false accept rate over all pairs reaches `rates`; the integral is a trapezoid sum over
    `thresholds` of them. Classes without genuine or without impostor pairs are left out; nan where none is left or
    the range is empty. The calibration range is a choice of the user's in the paper.
    """
    low, high = (found.thresholds[rate] for rate in rates)
    if not np.isfinite(high) or not low < high:
        return float("nan")
    at = np.linspace(low, high, thresholds)
    accepted: dict[int, np.ndarray] = {}
    for block in blocks():
        # 0: at or under the first threshold; thresholds: above the last.
        place = np.ceil((block.distances - low) * ((thresholds - 1) / (high - low)))
        place = np.clip(place, 0, thresholds).astype(np.int64)
        for i, label in enumerate(block.classes.tolist()):
            counts = accepted.setdefault(label, np.zeros((2, thresholds + 1), np.int64))
            for kind, mask in enumerate((block.impostor[i], block.genuine[i])):
                counts[kind] += np.bincount(place[i][mask], minlength=thresholds + 1)
    sums = np.cumsum(np.stack([*accepted.values()]), axis=2)
    totals = sums[:, :, -1:]
    kept = (totals > 0).all(axis=(1, 2))
    if not kept.any():
        return float("nan")
    share = sums[kept, :, :-1] / totals[kept]
    specificity, sensitivity = 1 - share[:, 0], share[:, 1]
    total = specificity + sensitivity
    utility = np.where(total > 0, 2 * specificity * sensitivity / np.where(total > 0, total, 1), 0)
    apart = np.mean((utility - utility.mean(axis=0)) ** 2, axis=0)
    return float(np.trapezoid(apart, at) / (high - low))
