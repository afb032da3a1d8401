"""One step of the Runge-Kutta-Chebyshev solvers: a loop with a single call of the field."""

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int

from . import _chebyshev as chebyshev
from . import _linalg as la
from . import _radius as radii
from ._linalg import Scalar, Vector
from ._radius import Radius

# How often a step may restart with more stages before it is given back to the controller.
_MAX_RESTARTS = 2
# Stage ratios up to this multiple of the bound are let pass: curvature of the path makes some.
_ALARM = 1.05


class Sweep(eqx.Module):
    """Carry of the one loop that a step consists of. Points are kept relative to `y0`."""

    index: Int[Array, ""]  # -1 field at y0, 0 power iteration, j >= 1 stage j
    stages: Scalar
    point: Vector  # of the recurrence, for the next evaluation
    previous: Vector  # the point before that
    place: Vector  # where `field` was evaluated: `previous` and the bend there
    field: Vector
    f0: Vector
    best: Vector  # direction of the largest ratio among the stages
    ratio: Scalar  # that ratio
    coefficients: chebyshev.Coefficients
    radius: Radius
    restarts: Int[Array, ""]
    evaluations: Int[Array, ""]
    probes: Int[Array, ""]
    done: Array
    failed: Array


def sweep_loop(operands, *, max_stages: int, every: int, kind) -> Sweep:
    """All evaluations of one step: a probe of the radius if due, the stages, the end point.

    They share one loop with a single call of the vector field, so that a large model is
    compiled once, and a step whose stages reveal instability can start again inside it.
    """
    # backwards in time diffrax turns the time round, so that `span` is positive and the step `h` negative
    vf, t0, span, h, y0, args, f0, jump, radius, bend = operands
    dtype = la.real_dtype(y0)
    length = la.norm(la.stop_gradient(y0))
    eps = float(jnp.finfo(dtype).eps)
    # A pair of stages closer than this has a ratio made of rounding.
    guard = 1000 * eps * length
    displacement = la.difference_step(y0)
    time = jax.lax.stop_gradient(jnp.asarray(t0, dtype))
    zero = la.scale(0, y0)
    size = jax.lax.stop_gradient(jnp.abs(h))

    def first_stage(sweep, radius, f0):
        """Set the sweep to its first stage, with stages enough for the present bound."""
        # Clipped so that a non-finite bound stays an integer; `failed` tells the truth.
        wanted = chebyshev.stages_for(radius.bound(time) * size)
        stages = jnp.where(wanted <= max_stages, wanted, max_stages)
        mu_f, coefficients = chebyshev.start(stages)
        failed = ~(wanted <= max_stages)
        return eqx.tree_at(
            lambda s: (s.index, s.stages, s.point, s.previous, s.place, s.field, s.f0,
                       s.coefficients, s.radius, s.failed, s.done),
            sweep,
            (jnp.asarray(1), stages, la.scale(mu_f * h, f0), zero, zero, f0, f0,
             coefficients, radius, sweep.failed | failed, sweep.done | failed),
        )  # fmt: skip

    def cond(sweep):
        return ~sweep.done

    def body(sweep: Sweep) -> Sweep:
        renew, probing = sweep.index < 0, sweep.index == 0
        # Abscissa of the point: stages 1..s carry theirs, the rest is evaluated at t0.
        last = sweep.index >= sweep.stages
        c = jnp.where(sweep.index <= 0, 0, jnp.where(last, 1, sweep.coefficients.c))
        t = t0 + jnp.asarray(c, jnp.result_type(t0)) * jnp.asarray(span, jnp.result_type(t0))
        place = bend.at(c, sweep.point)
        field = la.field(vf, t, la.add(y0, place), args)
        # What this evaluation says about the spectrum.
        change = la.stop_gradient(la.sub(field, sweep.field))
        moved = la.norm(la.stop_gradient(la.sub(place, sweep.place)))
        changed = la.norm(change)
        usable = (moved > guard) & jnp.isfinite(changed)
        ratio = jnp.where(usable & ~renew, changed / jnp.where(usable, moved, 1), 0)
        direction = radii.unit_or(change, changed, sweep.radius.direction)
        # a probe may leave the domain of the field
        probed = la.select(usable, sweep.radius.probed(time, ratio, direction), sweep.radius.unprobed())
        better = ~probing & (ratio > sweep.ratio)
        best = la.select(better, direction, sweep.best)
        top = jnp.where(better, ratio, sweep.ratio)
        alarm = ~renew & ~probing & (ratio > _ALARM * sweep.radius.bound(time))
        alarm = alarm & (sweep.restarts < _MAX_RESTARTS)
        alarmed = sweep.radius.alarmed(time, ratio, direction, 4.0)
        # The next stage.
        (mu, nu, mu_f, gamma_f), coefficients = sweep.coefficients.next()
        f0 = la.select(renew, field, sweep.f0)
        following = jtu.tree_map(
            lambda d, e, k, g: (mu * d + nu * e + mu_f * k + gamma_f * h * g).astype(d.dtype),
            sweep.point, sweep.previous, bend.rate(c, la.scale(h, field)), f0,
        )  # fmt: skip
        finite = jnp.isfinite(changed)
        onward = Sweep(
            index=sweep.index + 1,
            stages=sweep.stages,
            point=la.select(last, sweep.point, following),
            previous=sweep.point,
            place=place,
            field=field,
            f0=f0,
            best=best,
            ratio=top,
            coefficients=coefficients,
            radius=sweep.radius,
            restarts=sweep.restarts,
            evaluations=sweep.evaluations + 1,
            probes=sweep.probes + probing.astype(jnp.int32),
            done=sweep.done | last | ~finite,
            failed=sweep.failed | ~finite,
        )
        # Renewal of f0, a probe and an alarm all lead to the first stage.
        restart = renew | probing | alarm
        radius = la.select(probing, probed, la.select(alarm, alarmed, sweep.radius))
        missing = ~finite & ~probing
        again = eqx.tree_at(
            lambda s: (s.done, s.failed, s.restarts),
            onward,
            (missing, sweep.failed | missing, sweep.restarts + alarm.astype(jnp.int32)),
        )
        again = first_stage(again, radius, f0)
        # After a renewal the probe that is due comes next.
        due = renew & sweep.radius.due(every)
        again = eqx.tree_at(
            lambda s: (s.index, s.point),
            again,
            (
                jnp.where(due, 0, 1),
                la.select(due, la.scale(displacement, radius.direction), again.point),
            ),
        )
        return la.select(restart, again, onward)

    due = radius.due(every)
    count = jnp.zeros((), jnp.int32)
    blank = Sweep(
        index=count, stages=jnp.ones((), dtype), point=zero, previous=zero, place=zero,
        field=f0, f0=f0,
        best=radius.direction, ratio=jnp.zeros((), dtype),
        coefficients=chebyshev.start(jnp.asarray(2, dtype))[1], radius=radius,
        restarts=count, evaluations=count, probes=count,
        done=jnp.asarray(False), failed=jnp.asarray(False),
    )  # fmt: skip
    begin = first_stage(blank, radius, f0)
    index = jnp.where(jump, -1, jnp.where(due, 0, 1))
    probe_point = la.scale(displacement, radius.direction)
    point = la.select(jump, zero, la.select(due, probe_point, begin.point))
    begin = eqx.tree_at(lambda s: (s.index, s.point), begin, (index, point))
    limit = (_MAX_RESTARTS + 1) * max_stages + 2
    return eqxi.while_loop(cond, body, begin, max_steps=limit, kind=kind)


@eqx.filter_custom_jvp
def run_step(operands, *, max_stages: int, every: int):
    # The cheap loop for the value; reverse mode can't pass through it ...
    return sweep_loop(operands, max_stages=max_stages, every=every, kind="lax")


@run_step.def_jvp
def _run_step_jvp(primals, tangents, *, max_stages: int, every: int):
    # ... so that derivatives go through a bounded loop, which has both modes.
    def run(operands):
        return sweep_loop(operands, max_stages=max_stages, every=every, kind="bounded")

    return eqx.filter_jvp(run, primals, tangents)
