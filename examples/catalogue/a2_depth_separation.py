"""A2: the initial scale at which learning turns incremental, by bisection with flows."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, close, holds
from references import toy_threshold

import gflow

S, F = 0.1, 0.9
SECTIONS = 8


class Pair(eqx.Module):
    """Two values of the toy model, with targets r and 1 of their own, so that members may differ in r."""

    toy: gflow.models.Diagonal
    target: jax.Array


def pair_loss(pair, _):
    """(1/(2N²)) Σ (σᵢ − σᵢ*)²."""
    return jnp.sum((pair.toy.effective() - pair.target) ** 2) / (2 * pair.toy.depth**2)


OBSERVE = {
    "larger": lambda pair, _: pair.toy.effective()[0] / pair.target[0],
    "smaller": lambda pair, _: pair.toy.effective()[1],
}


def smaller_value(depth, ratios, log_start):
    """σⱼ when σᵢ has reached f of its target r, from the starts σ₀ = exp(log_start), all in one ensemble."""
    u = jnp.repeat(jnp.exp(jnp.ravel(log_start) / depth)[:, None], 2, axis=1)
    target = jnp.stack([jnp.ravel(ratios), jnp.ones(ratios.size)], axis=1)
    flow = gflow.integrate(
        Pair(gflow.models.Diagonal(u, None, depth), target),
        None,
        np.inf,
        loss=pair_loss,
        trainable=Pair(True, False),
        ensemble=True,
        save_at=[0.0],
        observe=OBSERVE,
        stop=gflow.stop.Crosses("larger", F),
        rtol=1e-10,
        atol=1e-250,
    )
    return flow.end["smaller"].reshape(ratios.shape)


def bisect(measure, ratios, low, high, rounds=5):
    """log x_th for each ratio, where `measure(ratios, log_start)` passes s.

    Each round cuts the bracket into seven, and the last one is interpolated.
    """
    column = np.arange(len(ratios))
    for _ in range(rounds):
        grid = np.linspace(low, high, SECTIONS)
        value = measure(np.broadcast_to(ratios, grid.shape), grid)
        incremental = value <= S
        assert np.all(incremental[0] & ~incremental[-1]), "the threshold lies outside of the bracket"
        last = SECTIONS - 1 - np.argmax(incremental[::-1], axis=0)
        low, high = grid[last, column], grid[last + 1, column]
    left, right = np.log(value[last, column] / S), np.log(value[last + 1, column] / S)
    return low - left * (high - low) / (right - left)


def run(quick: bool) -> Entry:
    """Slopes of ln x_th against ln(r−1) for N > 2, the straight line in 1/(r−1) for N = 2."""
    gaps = np.geomspace(1e-3 if quick else 1e-4, 1e-2, 4)
    checks, found, errors, events = [], {}, [], []
    for depth in (2, 3, 4, 10):
        if depth == 2:
            gaps_here = np.array([0.01, 0.02, 0.05, 0.2])
            low = -6 / gaps_here
        else:
            gaps_here = gaps
            low = depth / (depth - 2) * np.log(gaps) - 6
        ratios = 1 + gaps_here
        log_x = bisect(partial(smaller_value, depth), ratios, low, np.full(4, np.log(S)))
        found[depth] = gaps_here, log_x
        exact = np.array([toy_threshold(r, depth, S, F) for r in ratios])
        errors.append(np.abs(log_x - exact).max())
        starts = np.broadcast_to(exact, (SECTIONS, 4))  # the same shape, so that nothing is compiled
        events.append(np.abs(smaller_value(depth, np.broadcast_to(ratios, starts.shape), starts) - S).max())
        if depth == 2:
            slope_2, intercept = np.polyfit(1 / gaps_here, log_x, 1)
            law = 2 * np.log(S / (1 - S))  # of s(1−f)/((1−s)f) with f = 1 − s
            checks.append(close("N = 2: slope of ln σ_th against 1/(r−1)", slope_2, law, 0.01 * abs(law)))
            bend = np.abs(slope_2 / gaps_here + intercept - log_x).max() / np.ptp(log_x)
            checks.append(below("N = 2: largest distance from the line, relative to its range", bend, 0.01))
        else:
            slope, law = np.polyfit(np.log(gaps), log_x, 1)[0], depth / (depth - 2)
            checks.append(close(f"N = {depth}: slope of ln σ_th against ln(r−1)", slope, law, 0.01 * law))
    checks.append(below("error of ln σ_th against quadrature", max(errors), 1e-4))
    checks.append(below("σ_j − s when the flow from the exact σ_th has σ_i = f σ_i*", max(events), 1e-6))
    starts = np.broadcast_to(np.log([1e-12, 1e-8, 1e-4, 1e-2]), (SECTIONS, 4))
    least = smaller_value(1, np.full(starts.shape, 2.0), starts).min()
    checks.append(above("N = 1: σ_j/σ_j* when σ_i = f σ_i*, at least, from any σ_0", least, F - 1e-8))
    checks.append(holds("N = 1: the library says never", gflow.bias.incremental_threshold(2.0, 1).value == 0))

    def draw(figure):
        powers, line = figure.subplots(1, 2)
        for depth in (3, 4, 10):
            gaps_here, log_x = found[depth]
            law = depth / (depth - 2)
            powers.loglog(gaps_here, np.exp(log_x), "o", ms=4, label=f"N = {depth}: slope {law:.3g}")
            guide = np.exp(log_x[0]) * (gaps_here / gaps_here[0]) ** law
            powers.loglog(gaps_here, guide, "k-", lw=0.8)
        powers.set(xlabel="$r-1$", ylabel=r"threshold $\sigma_{th}/\sigma_j^*$")
        powers.legend()
        gaps_here, log_x = found[2]
        line.plot(1 / gaps_here, log_x, "o", ms=4, label="N = 2")
        line.plot(1 / gaps_here, slope_2 / gaps_here + intercept, "k-", lw=0.8, label="straight line")
        line.set(xlabel="$1/(r-1)$", ylabel=r"$\ln\,\sigma_{th}/\sigma_j^*$")
        line.legend()

    return Entry(
        "Values whose targets have the ratio r are learned one by one only from a scale below σ_th,"
        " which falls like (r−1)^{N/(N−2)} for depth N > 2 but exponentially in 1/(r−1) for N = 2, "
        "and never for N = 1.",
        "Gissin, Shalev-Shwartz and Daniely, ICLR 2020, arXiv:1909.12051",
        checks,
        draw,
    )
