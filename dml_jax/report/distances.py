"""The section of a report on distances, the ROC and the spectrum of the embeddings."""

import numpy as np
from jaxtyping import Float, Int

from dml_jax.evaluation.spectrum import singular_values
from dml_jax.evaluation.verification import roc
from dml_jax.evaluation.verification.pairs import pairs_of
from dml_jax.report import charts
from dml_jax.report import page as pages
from dml_jax.report.summary import distance_histograms

# Points of the ROC, and the false accept rate that its text is about.
CURVE, RATE = 200, 0.001


def distances_section(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    anchors: Int[np.ndarray, " m"],
    distance: str,
    *,
    verified: bool,
) -> str:
    """Draws histograms of distances within and across classes, the ROC, and the singular values.

    Args:
      vectors: the embeddings of what has a label.
      labels: theirs.
      anchors: the rows whose distances to all others are looked at.
      distance: `euclidean` or `cosine`.
      verified: True for the ROC, whose pairs are counted for it.
    """
    count = len(labels)
    edges, intra, inter = distance_histograms(vectors, labels, anchors=anchors, distance=distance)
    series = [
        (f"{name} ({total:,})", counts / max(total, 1))
        for name, counts in (("same class", intra), ("other classes", inter))
        for total in [int(counts.sum())]
    ]
    distances = charts.histogram(
        edges,
        series,
        title=f"Histograms of the {distance} distances of pairs within a class and of different classes",
        across=f"{distance} distance",
        up="share of the pairs",
    )
    drawn = "all images" if len(anchors) == count else f"{len(anchors)} images drawn at random"
    values = singular_values(vectors)
    share = np.cumsum(values**2) / max(float(np.sum(values**2)), 1e-30)
    half, most = (int(np.searchsorted(share, part)) + 1 for part in (0.5, 0.9))
    half, most = min(half, len(values)), min(most, len(values))
    spectrum = charts.line(
        values,
        title=f"Singular values of the embeddings, largest first; {half} directions hold half of the sum of squares",
        across="direction",
        up="singular value",
    )
    return '<div class="pair">' + "".join(
        [
            pages.figure(
                distances,
                f"Distances from {drawn} to all others; the number of pairs in brackets. "
                "The less the two overlap, the better one threshold tells classes apart.",
            ),
            _roc(vectors, labels, anchors, distance, drawn) if verified else "",
            pages.figure(
                spectrum,
                f"Singular values of the embeddings, {len(values)} directions: {half} of them hold half of the sum "
                f"of squares and {most} hold 90 %. The more equal they are, the better the space is used.",
            ),
            "</div>",
        ]
    )


def _roc(
    vectors: np.ndarray, labels: np.ndarray, anchors: np.ndarray, distance: str, drawn: str
) -> str:
    pairs = pairs_of(
        vectors[anchors],
        labels[anchors],
        gallery=vectors,
        gallery_labels=labels,
        self_index=anchors,
        distance=distance,
    )
    found = roc.verify(pairs, (RATE,), equal=True, area=True)
    if found.empty:
        return ""
    far, tar, _ = found.curve(CURVE)
    chart = charts.rates(
        far,
        tar,
        title="Receiver operating characteristic: the share of pairs within a class that is accepted, by that of pairs "
        "of different classes",
        across="false accept rate",
        up="true accept rate",
    )
    area, _ = found.area()
    return pages.figure(
        chart,
        f"ROC of one threshold for all pairs of {drawn} with all others: where {RATE:.1%} of the pairs of different "
        f"classes are accepted, {found.true_accept_rate(RATE):.1%} of those within a class are. The area under the "
        f"curve is {area:.4f}, the equal error rate {found.equal_error_rate():.4f}.",
    )
