"""Yardsticks of implicit bias: margins, KKT residuals, effective predictors, homogeneity."""

from gflow.bias._directions import direction_distance, flip_radii, increment_direction, universal_direction
from gflow.bias._homogeneity import homogeneity_degree
from gflow.bias._kkt import reconstruction_residual, slackness, stationarity
from gflow.bias._layers import layer_alignment, singular_value_ratio
from gflow.bias._linear import frequency_norm, linear_fit, linear_predictor, nonlinearity
from gflow.bias._margins import duals, linear_margin, margins, parameter_margin
from gflow.bias._regions import linear_regions

__all__ = [
    "direction_distance",
    "duals",
    "flip_radii",
    "frequency_norm",
    "homogeneity_degree",
    "increment_direction",
    "layer_alignment",
    "linear_fit",
    "linear_margin",
    "linear_predictor",
    "linear_regions",
    "margins",
    "nonlinearity",
    "parameter_margin",
    "reconstruction_residual",
    "singular_value_ratio",
    "slackness",
    "stationarity",
    "universal_direction",
]
