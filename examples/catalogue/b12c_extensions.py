"""B12C: several classes, steepest descent in other norms, other losses, and finite steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from entry import Entry, above, below, holds
from references import max_margin, max_margin_in, multiclass_max_margin
from separable import SEEDS, direction_distance, real, teacher, worst

import gflow
from gflow.clocks import Arclength, LogLoss
from gflow.losses import CrossEntropy, Exponential, Log, Logistic
from gflow.stop import Crosses

W = {"w": lambda model, _: model.effective()}
SMALL = np.array([[1, 0.2], [1, 1], [0.3, 1], [2, 0.1], [0.5, 3]])


def linear(inputs: int, outputs: int = 1) -> gflow.models.DeepLinear:
    """The linear model that starts at 0."""
    return gflow.models.DeepLinear([jnp.zeros((outputs, inputs))])


def along(model, data, loss, times, clock, **options):
    """The flow of `loss` by a clock, to high accuracy."""
    return gflow.integrate(
        model,
        data,
        times[-1],
        loss=loss,
        clock=clock,
        rtol=1e-6,
        atol=1e-9,
        save_at=times,
        observe=W,
        **options,
    )


def classes(quick: bool):
    """Distances to the multiclass separator at τ = 1e5, of w and of its increments."""
    times = np.array([0.0, 5e4, 1e5])
    sets = []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        y = np.arange(30) % 3
        sets.append(
            (3 * np.array([[1, 0], [-0.5, 0.9], [-0.5, -0.9]])[y] + random.normal(size=(30, 2)) / 2, y)
        )
    if not quick:
        x, y = map(np.asarray, gflow.data.wine())
        sets.append((np.hstack([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))]), y))
    found = []
    for x, y in sets:
        y = y.astype(np.int32)
        flow = along(linear(x.shape[1], 3), (x, y), CrossEntropy(), times, LogLoss())
        best = multiclass_max_margin(x, y)
        found.append(
            (
                direction_distance(flow["w"][-1], best),
                direction_distance(flow["w"][-1] - flow["w"][-2], best),
            )
        )
    return np.array(found)


def steepest(x, y, order, steps, saves):
    """Margins over the largest in the norm ‖w‖_p, p = `order`, along steepest descent with steps 1/√k.

    After the way S = Σ ηₖ the margin is short of the largest by about log(n)/S, because of where the path
    began, and by the last steps: ten times shorter steps leave the first on data of many dimensions.
    """
    rate = lambda k: 1 / jnp.sqrt(k + 1)
    optimizer = optax.sign_sgd(rate) if order == np.inf else gflow.optimizers.coordinate_descent(rate)
    path = gflow.descend(
        linear(x.shape[1]),
        (x, y),
        optimizer,
        steps,
        loss=Log(Exponential()),
        save_every=steps // saves,
        observe=W,
    )
    w = path["w"][1:, 0]
    z = y[:, None] * x
    largest = 1 / np.linalg.norm(max_margin_in(z, order), order)
    return path.t[1:], (w @ z.T).min(axis=1) / np.linalg.norm(w, order, axis=1) / largest


def polynomial_tail(model, data):
    """(1/n) Σ 1/(1 + qᵢ)."""
    x, y = data
    return jnp.mean(1 / (1 + y * (x @ model.effective()[0])))


def refused() -> bool:
    """Whether log-loss time, in which a direction means a margin, is refused for that."""
    try:
        gflow.integrate(linear(2), (SMALL, np.ones(5)), 1.0, loss=polynomial_tail, clock=LogLoss())
    except ValueError as error:
        return "logarithm is known" in str(error)
    return False


def finite_steps(x, y, steps, key):
    """Distances to the separator of descent, stochastic descent, descent on log L, and the flow at t = ηk."""
    best = max_margin(y[:, None] * x)
    step = 0.5
    distances = []
    for loss, minibatch in ((Logistic(), None), (Logistic(), 1), (Log(Logistic()), None)):
        path = gflow.descend(
            linear(2), (x, y), step, steps, loss=loss, save_every=steps, observe=W, minibatch=minibatch,
            key=None if minibatch is None else key,
        )  # fmt: skip
        distances.append(direction_distance(path["w"][-1, 0], best))
    then = Crosses("log_t", np.log(step * steps))
    flow = along(linear(2), (x, y), Logistic(), np.array([0.0, 1e5]), LogLoss(), stop=then)
    return *distances, direction_distance(flow["w"][-1, 0], best)


def run(quick: bool) -> Entry:
    """Each extension against its own reference."""
    multiclass = classes(quick)
    steps = 100_000
    found = real()
    sets = {f"random {seed}": teacher(seed, 30, 2) for seed in SEEDS}
    if not quick:
        sets |= {name: found[name] for name in ("iris", "wine", "digits")}
    paths = {
        (name, order): steepest(*data, order, steps, 40)
        for name, data in sets.items()
        for order in (1, np.inf)
    }
    ends = {key: ratio[-1] for key, (_, ratio) in paths.items()}
    coordinate = min(r for (_, p), r in ends.items() if p == 1)
    sign = min(r for (_, p), r in ends.items() if p == np.inf)

    small = (SMALL, np.ones(5))
    times = np.array([0.0, 1e3, 1e4])
    best = max_margin(SMALL)
    tails = {
        "exp": along(linear(2), small, Exponential(), times, LogLoss()),
        "polynomial": along(linear(2), small, polynomial_tail, times, Arclength()),
    }
    tail = {k: [direction_distance(w[0], best) for w in f["w"][1:]] for k, f in tails.items()}

    # plain steps are as slow as the flow, like 1/log t: what they reach depends on the constant of the data
    plain, stochastic, normalised, flow = np.transpose(
        [finite_steps(*sets[f"random {seed}"], steps, jax.random.key(seed)) for seed in SEEDS]
    )

    def draw(figure):
        for axes, order in zip(figure.subplots(1, 2), (1, np.inf), strict=True):
            for name in sets:
                k, ratio = paths[name, order]
                axes.loglog(k, np.maximum(1 - ratio, 1e-5), lw=1, label=name)
            norm = "1" if order == 1 else r"\infty"
            axes.set(xlabel="step k", ylabel=rf"$1-$ margin in $\|w\|_{{{norm}}}$ over the largest")
            axes.set_title("coordinate descent" if order == 1 else "sign descent", fontsize=10)
        axes.legend(fontsize=7, loc="upper right", ncols=2)
        axes.set_ylim(1e-4, 1)

    return Entry(
        "Several classes go to the multiclass separator, steepest descent to the largest margin in its own "
        "norm, stochastic descent to the ℓ₂ separator as fast as plain descent; a loss with a polynomial "
        "tail goes elsewhere.",
        "Soudry et al., JMLR 2018, arXiv:1710.10345; Gunasekar, Lee, Soudry and Srebro, ICML 2018, "
        "arXiv:1802.08246; Nacson, Srebro and Soudry, AISTATS 2019, arXiv:1806.01796",
        [
            below(
                "cross-entropy: distance to the multiclass separator at τ = 1e5",
                worst(multiclass[:, 0]),
                1e-3,
            ),
            below("the same of the increments of w", worst(multiclass[:, 1]), 1e-8),
            above("coordinate descent: ℓ₁ margin over the largest after 1e5 steps, least", coordinate, 0.97),
            above("sign descent: ℓ∞ margin over the largest after 1e5 steps, least", sign, 0.97),
            below("exponential tail: distance to the separator at τ = 1e4", tail["exp"][1], 1e-5),
            above("polynomial tail: the same at arclength s = 1e4", tail["polynomial"][1], 5e-3),
            below("polynomial tail: its change since s = 1e3", abs(np.diff(tail["polynomial"])[0]), 1e-3),
            holds("polynomial tail: log-loss time is refused", refused()),
            below(
                "descent, η = 1/2, 1e5 steps: distance over that of the flow at t = ηk, less 1",
                worst(np.abs(plain / flow - 1)),
                2e-2,
            ),
            below("stochastic descent: the same", worst(np.abs(stochastic / flow - 1)), 2e-2),
            below("descent on log L, as many steps: distance to the separator", worst(normalised), 5e-3),
        ],
        draw,
    )
