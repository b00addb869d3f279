"""Cluster and aggregate: k-means over the tokens, one token per cluster (2504.17892)."""

from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.clustering import k_means
from crtc.merging import centres, make_plan, mean
from crtc.methods.method import Method
from crtc.tokens import Groups, Plan, Tokens

Form = Literal["mean", "medoid"]
Metric = Literal["euclidean", "spherical"]


class KMeans(Method):
    """Clusters the tokens of every group and keeps one for each cluster, at the place of its medoid.

    Deviations: no code is public, and the paper leaves open how clustering starts and ends, the metric, and where a
    merged token stands; our choices are k-means++ from a fixed seed, at most 20 updates or until no centre moves by a
    ten-thousandth of the tokens' spread, an empty cluster takes the token farthest from its centre, and merged tokens
    stand in the order of their medoids.

    Args:
        form: "mean" of a cluster's tokens, or its "medoid", the member nearest to the mean, unchanged.
        metric: "euclidean", or "spherical" for clusters of directions.
        seed: of the start.
        iterations: at most as many updates of the centres.
        tolerance: share of the tokens' spread by which a centre must move for clustering to go on.
    """

    source = "Cluster & Aggregate, arXiv 2504.17892"
    family = "clustering"
    uses_order = True

    def __init__(
        self,
        form: Form = "mean",
        metric: Metric = "euclidean",
        *,
        seed: int = 0,
        iterations: int = 20,
        tolerance: float = 1e-4,
    ):
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}, expected one of {', '.join(get_args(Form))}")
        if metric not in get_args(Metric):
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
        if iterations < 0:
            raise ValueError(f"iterations is {iterations!r}, expected 0 or more")
        if tolerance < 0:
            raise ValueError(f"tolerance is {tolerance!r}, expected 0 or more")
        self.form: Form = form
        self.metric: Metric = metric
        self.seed = seed
        self.iterations = iterations
        self.tolerance = tolerance

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Cluster every group into `k[g]`."""
        groups = Groups.of(tokens)
        owner = k_means(
            groups.gather(tokens.x),
            groups.valid,
            k,
            spherical=self.metric == "spherical",
            seed=self.seed,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        if self.form == "mean":
            return make_plan(tokens, groups, owner, mean(owner, groups.valid))
        return make_plan(tokens, groups, owner, centres(owner).to(torch.float32))


class KMeansSpherical(KMeans):
    """KMeans of directions: tokens of extreme length, which vision towers make, do not bend the clusters.

    Args:
        form: "mean" of a cluster's tokens, or its "medoid".
        seed: of the start.
        iterations: at most as many updates of the centres.
        tolerance: share of the tokens' spread by which a centre must move for clustering to go on.
    """

    source = "spherical k-means, Dhillon and Modha 2001"

    def __init__(self, form: Form = "mean", *, seed: int = 0, iterations: int = 20, tolerance: float = 1e-4):
        super().__init__(form, "spherical", seed=seed, iterations=iterations, tolerance=tolerance)


class KMeansMedoid(KMeans):
    """KMeans that prunes: the medoid of every cluster stays as it is, so that choosing is told apart from merging.

    Args:
        metric: "euclidean", or "spherical" for clusters of directions.
        seed: of the start.
        iterations: at most as many updates of the centres.
        tolerance: share of the tokens' spread by which a centre must move for clustering to go on.
    """

    source = "the pruning control of Cluster & Aggregate, arXiv 2504.17892"

    def __init__(self, metric: Metric = "euclidean", *, seed: int = 0, iterations: int = 20, tolerance: float = 1e-4):
        super().__init__("medoid", metric, seed=seed, iterations=iterations, tolerance=tolerance)
