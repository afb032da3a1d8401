"""Yardsticks of implicit bias.

Of regression: norms, potentials, ranks, incremental learning, greedy algorithms. Of classification: margins,
KKT residuals, effective predictors, homogeneity.
"""

from gflow.bias._balance import balancedness
from gflow.bias._directions import direction_distance, flip_radii, increment_direction, universal_direction
from gflow.bias._greedy import GreedyLowRank, greedy_low_rank
from gflow.bias._homogeneity import homogeneity_degree
from gflow.bias._hypentropy import DeepHypentropy, Hypentropy
from gflow.bias._incremental import (
    IncrementalThreshold,
    half_times,
    incremental_threshold,
    is_incremental,
    passage_times,
)
from gflow.bias._kkt import reconstruction_residual, slackness, stationarity
from gflow.bias._layers import layer_alignment, singular_value_ratio
from gflow.bias._linear import frequency_norm, linear_fit, linear_predictor, nonlinearity
from gflow.bias._margins import duals, linear_margin, margins, parameter_margin
from gflow.bias._norms import effective_rank, lp_norm, nuclear_norm, variation_norm
from gflow.bias._pursuit import orthogonal_matching_pursuit, support_agreement
from gflow.bias._regions import linear_regions

__all__ = [
    "DeepHypentropy",
    "GreedyLowRank",
    "Hypentropy",
    "IncrementalThreshold",
    "balancedness",
    "direction_distance",
    "duals",
    "effective_rank",
    "flip_radii",
    "frequency_norm",
    "greedy_low_rank",
    "half_times",
    "homogeneity_degree",
    "increment_direction",
    "incremental_threshold",
    "is_incremental",
    "layer_alignment",
    "linear_fit",
    "linear_margin",
    "linear_predictor",
    "linear_regions",
    "lp_norm",
    "margins",
    "nonlinearity",
    "nuclear_norm",
    "orthogonal_matching_pursuit",
    "parameter_margin",
    "passage_times",
    "reconstruction_residual",
    "singular_value_ratio",
    "slackness",
    "stationarity",
    "support_agreement",
    "universal_direction",
    "variation_norm",
]
