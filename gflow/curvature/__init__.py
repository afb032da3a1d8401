"""Curvature: eigenvalues of the Hessian ∇²L(θ), by Hessian-vector products alone."""

from gflow.curvature._lanczos import Eigenpairs
from gflow.curvature._sharpness import Sharpness, sharpness, top_eigenpairs, track

__all__ = ["Eigenpairs", "Sharpness", "sharpness", "top_eigenpairs", "track"]
