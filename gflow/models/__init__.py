"""Small models of the literature on implicit bias, each with its effective predictor in closed form."""

from gflow.models._diagonal import Diagonal, UnsharedDiagonal
from gflow.models._linear import Convolutional, DeepLinear
from gflow.models._linearised import Linearised
from gflow.models._matrix import Factorisation, Quadratic, SymmetricFactorisation
from gflow.models._neurons import Neuron, TwoLayer

__all__ = [
    "Convolutional",
    "DeepLinear",
    "Diagonal",
    "Factorisation",
    "Linearised",
    "Neuron",
    "Quadratic",
    "SymmetricFactorisation",
    "TwoLayer",
    "UnsharedDiagonal",
]
