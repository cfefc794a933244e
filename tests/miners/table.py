"""The miners under test: "name/variant" -> hyper-parameters. A new miner is a new row here.

Names of hyper-parameters are PML's, so that tests/golden/make_miners.py reads the same table.
"""

STRATEGIES = ("hard", "semihard", "easy", "all")
EASY_HARD = {
    f"batch_easy_hard/{p}-{n}": dict(pos_strategy=p, neg_strategy=n)
    for p in STRATEGIES
    for n in STRATEGIES
    if "semihard" not in (p, n) or {p, n} & {"hard", "easy"}
}
RANGES = dict(allowed_pos_range=[0.6, 1.3], allowed_neg_range=[0.9, 1.4])

# Those that draw nothing, in tests/golden/make_miners.py, too.
EXACT = {
    "angular": {},
    "angular/40": dict(angle=40),
    **EASY_HARD,
    "batch_easy_hard/ranges": dict(pos_strategy="hard", neg_strategy="hard", **RANGES),
    "batch_easy_hard/semihard_ranges": RANGES,
    "batch_easy_hard/all_ranges": dict(pos_strategy="all", neg_strategy="easy", **RANGES),
    "batch_easy_hard/cosine": dict(distance="cosine"),
    "batch_easy_hard/cosine_semihard": dict(
        distance="cosine", pos_strategy="semihard", neg_strategy="hard"
    ),
    "batch_hard": {},
    "batch_hard/cosine": dict(distance="cosine"),
    "embeddings_already_packaged_as_triplets": {},
    "hdc": {},
    "hdc/third": dict(filter_percentage=0.3),
    "hdc/cosine": dict(distance="cosine", filter_percentage=0.25),
    "multi_similarity": {},
    "multi_similarity/lp": dict(distance="lp", epsilon=0.2),
    "pair_margin": {},
    "pair_margin/wide": dict(pos_margin=0.9, neg_margin=1.2),
    "pair_margin/cosine": dict(distance="cosine", pos_margin=0.6, neg_margin=0.1),
    **{
        f"triplet_margin/{kind}{'_cosine' * (distance == 'cosine')}": dict(
            type_of_triplets=kind, distance=distance
        )
        for kind in ("all", "hard", "semihard", "easy")
        for distance in ("lp", "cosine")
    },
}
DRAWN = {
    "distance_weighted": {},
    "distance_weighted/cutoffs": dict(cutoff=0.8, nonzero_loss_cutoff=1.2),
    "uniform_histogram": {},
    "uniform_histogram/few": dict(num_bins=7, pos_per_bin=3, neg_per_bin=5),
}
# Those of the ICML 2020 study, whose choices and probabilities tests/miners/test_revisiting.py has.
STUDY = {
    "distance": {},
    "intra_random": {},
    "lifted": {},
    "n_pair": {},
    "parametric": {},
    "random": {},
    "random_distance": {},
    "rho_distance": {},
    "semihard": {},
    "softhard": {},
}
# Those that take no references other than the batch.
BATCH_ALONE = ("intra_random", "random_distance", "rho_distance")
ALL = EXACT | DRAWN | STUDY
