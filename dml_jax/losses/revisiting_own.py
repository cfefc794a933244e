"""Losses of the ICML 2020 system that do more than call their kernel."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import classwise, distances, reducers, regularizers
from dml_jax import pairwise as driver
from dml_jax.losses.base import PairLoss, SoftmaxLoss, Variables
from dml_jax.losses.own import MarginLoss, TripletLoss, ViewsLoss
from dml_jax.mean import Mean
from dml_jax.selection import Listed, Selection, draw, draw_positive


@dataclass(frozen=True)
class SummedMarginLoss(MarginLoss):
    """Margin loss with a beta for each class by default, and nu times the sum of beta over all triplets."""

    settings: ClassVar = {**MarginLoss.settings, "per_class": True}

    def _beta_reducer(self) -> reducers.Reducer:
        return reducers.sum_()


@dataclass(frozen=True)
class OnePositiveLoss(PairLoss):
    """A loss on one positive of each anchor, drawn by `apply`'s key and the anchor's position, and all negatives.

    With a miner its pairs are taken instead, and nothing is drawn.
    """

    def _mine(self) -> driver.Mining | None:
        if self.miner is not None:
            return super()._mine()

        def select(block: driver.Block, keys: Array | None, miner_state: Any) -> Selection:
            del miner_state
            if keys is None:
                raise ValueError(f"loss {self.name!r} draws a positive at random and needs a key")
            return draw_positive(block.related.pos, block.related.neg, keys)

        return driver.Mining(select)


@dataclass(frozen=True)
class QuadrupletLoss(TripletLoss):
    """A loss on triplets with a fourth sample, which it draws by `apply`'s key and the anchor's position.

    With `parity`, as the ICML 2020 code: of the T triplets a miner lists, one an anchor, triplet u draws q_u among the
    anchors whose own negative is another sample than its negative, whatever their class, and every triplet is
    compared with every draw: mean_t mean_u [d_ap - d_(n_t, q_u) + alpha2]+. (The code takes ranks in the list of
    triplets for positions in the batch, and fails unless every sample is an anchor.)
    """

    settings: ClassVar = {**TripletLoss.settings, "parity": False}

    @property
    def needs_labels(self) -> bool:
        return True

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        if key is None:
            raise ValueError(f"loss {self.name!r} draws fourth samples at random and needs a key")
        others, how = self._setup(variables, anchors, refs, key, block)
        sums = None
        if self.setting("parity"):
            if refs is not None:
                raise ValueError(
                    f"loss {self.name!r} with parity=True draws from the batch; accepted: no ref_embeddings"
                )
            sums = self._fourths(anchors, others, how)
        return driver.pairwise(
            self._terms, anchors, others, reducer=self.reducer, prepass_sums=sums, **how
        )

    def _fourths(self, anchors, others, how: dict[str, Any]) -> Float[Array, " n"]:
        """How often each sample is drawn by the triplets of the whole batch."""

        def listed(block: driver.Block) -> tuple[tuple[()], tuple[Array, Array]]:
            chosen = block.selection.triplets
            if not isinstance(chosen, Listed) or chosen.negative.shape[1] != 1:
                raise ValueError(
                    f"loss {self.name!r} with parity=True needs a miner that lists one triplet of each "
                    "anchor, 'batch_hard' say"
                )
            return (), (chosen.negative[:, 0], chosen.weight[:, 0] > 0)

        _, (negative, some) = driver.map_blocks(listed, anchors, others, **how)

        def fourths(block: driver.Block) -> tuple[Array, tuple[()]]:
            assert block.keys is not None  # refused above
            negatives, there = block.ref_values
            allowed = there[None, :] & (
                block.anchor_args["negative"][:, None] != negatives[None, :]
            )
            allowed &= (block.anchor_args["some"] & block.anchor_valid)[:, None]
            one = draw(block.keys, allowed) == jnp.arange(len(negatives))[None, :]
            return jnp.sum(one & allowed, 0), ()

        found = dict(anchor_args={"negative": negative, "some": some}, ref_values=(negative, some))
        bare = dict(distance=None, mine=None) | found
        return driver.map_blocks(fourths, anchors, others, **how | bare)[0]


@dataclass(frozen=True)
class SoftTripleLoss(SoftmaxLoss):
    """SoftTriple with its penalty on centers, and with `parity` as the ICML 2020 code computes both."""

    settings: ClassVar = {"reg_weight": 0.2, "parity": False}

    def _values(self, embeddings: Array, weights: Array, labels: Array, block) -> Array:
        if not self.setting("parity"):
            return super()._values(embeddings, weights, labels, block)
        weights = unit_coordinates(weights)
        count = weights.shape[1]

        def sims(unit: Array, weights: Array) -> Float[Array, "b kc"]:
            rows = weights.swapaxes(0, 1).reshape(-1, weights.shape[-1])
            return distances.dot_product(unit, rows, normalize_embeddings=False)

        def scaled(unit: Array, weights: Array, target: Array) -> Float[Array, "b k c"]:
            del target
            return self.setting("gamma") * sims(unit, weights).reshape(len(unit), count, -1)

        def logits(samples: tuple[Array, Array], weights: Array, target: Array) -> Array:
            unit, log_sums = samples
            keywords = self._keywords(self.kernel, {"log_sums": log_sums})
            return self.kernel(sims(unit, weights), target, **keywords)

        unit = distances.normalize(embeddings)
        log_sums = classwise.log_sum_exp(scaled, unit, weights, labels, block=block)
        return self.over_classes(logits, (unit, log_sums), weights, labels, block=block)

    def _mean(self, variables, anchors, refs, key, block) -> Mean:
        mean = super()._mean(variables, anchors, refs, key, block)
        centers = variables["params"]["weights"].astype(mean.total.dtype)
        parity = self.setting("parity")
        penalty = (
            spread(unit_coordinates(centers)) if parity else regularizers.sparse_centers(centers)
        )
        total = mean.compute() + self.setting("reg_weight") * penalty
        return Mean(total, jnp.ones_like(total), mean.stats)


def unit_coordinates(centers: Float[Array, "c k d"]) -> Float[Array, "c k d"]:
    """Every coordinate divided by its norm over all centers."""
    columns = centers.reshape(-1, centers.shape[-1]).T
    return distances.normalize(columns).T.reshape(centers.shape)


def spread(centers: Float[Array, "c k d"]) -> Float[Array, ""]:
    """sum_c sum_{k<l} sqrt(2.00001 - 2 w_ck.w_cl) / (c k (k - 1)), for any vectors; 0 with a single center a class."""
    classes, count = centers.shape[:2]
    gram = jnp.einsum("ckd,cld->ckl", centers, centers, precision="highest")
    pairs = jnp.triu(jnp.ones((count, count), bool), 1)[None] & (gram < 1.000005)
    gaps = jnp.where(pairs, jnp.sqrt(jnp.where(pairs, 2.00001 - 2 * gram, 1)), 0)
    return jnp.sum(gaps) / max(classes * count * (count - 1), 1)


@dataclass(frozen=True)
class PredictorLoss(ViewsLoss):
    """A loss on two views with a learned perceptron from the one to the other, of one hidden layer."""

    settings: ClassVar = {"proj_dim": 512}

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """{"params": {"hidden" and "output": {"kernel": [in, out], "bias": [out]}}}, uniform in +-1/sqrt(in)."""
        del num_classes
        width = self.setting("proj_dim")

        def layer(key: Array, rows: int, columns: int) -> dict[str, Array]:
            draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-1, maxval=1)
            first, second = jax.random.split(key)
            scale = 1 / math.sqrt(rows)
            return {
                "kernel": scale * draw(first, rows, columns),
                "bias": scale * draw(second, columns),
            }

        hidden, output = jax.random.split(key)
        return {
            "params": {"hidden": layer(hidden, dim, width), "output": layer(output, width, dim)}
        }
