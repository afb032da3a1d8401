"""Curvature: the spectrum of the Hessian ∇²L(θ) and of its relatives, by products with vectors alone.

[`hessian`][gflow.curvature.hessian], [`gauss_newton`][gflow.curvature.gauss_newton] and
[`functional_hessian`][gflow.curvature.functional_hessian] make linear operators of a problem;
[`block`][gflow.curvature.block] and [`preconditioned`][gflow.curvature.preconditioned] make others of those.
[`top_eigenpairs`][gflow.curvature.top_eigenpairs],
[`spectral_density`][gflow.curvature.spectral_density] and [`trace`][gflow.curvature.trace] take a problem,
for its Hessian, or any such operator:

    layer = gflow.curvature.block(gflow.curvature.hessian(problem), lambda model: model.layers[0])
    gflow.curvature.top_eigenpairs(layer, k=3, which="both").values
"""

from gflow.curvature._density import SpectralDensity, spectral_density
from gflow.curvature._eigenpairs import top_eigenpairs
from gflow.curvature._gauss_newton import functional_hessian, gauss_newton
from gflow.curvature._lanczos import Eigenpairs
from gflow.curvature._ntk import ntk
from gflow.curvature._operators import block, hessian, preconditioned
from gflow.curvature._sharpness import Sharpness, sharpness
from gflow.curvature._trace import TraceEstimate, trace
from gflow.curvature._tracker import Track, follow, start_track

__all__ = [
    "Eigenpairs",
    "Sharpness",
    "SpectralDensity",
    "Track",
    "TraceEstimate",
    "block",
    "follow",
    "functional_hessian",
    "gauss_newton",
    "hessian",
    "ntk",
    "preconditioned",
    "sharpness",
    "spectral_density",
    "start_track",
    "top_eigenpairs",
    "trace",
]
