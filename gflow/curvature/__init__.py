"""Curvature: eigenvalues of the Hessian ∇²L(θ), by Hessian-vector products alone."""

from gflow.curvature._lanczos import Eigenpairs
from gflow.curvature._sharpness import Sharpness, sharpness, top_eigenpairs, track
from gflow.curvature._tracker import Track, follow, start_track

__all__ = [
    "Eigenpairs",
    "Sharpness",
    "Track",
    "follow",
    "sharpness",
    "start_track",
    "top_eigenpairs",
    "track",
]
