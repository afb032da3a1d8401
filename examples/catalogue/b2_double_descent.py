"""B2: the test risk of the smallest solution peaks at as many features as examples, and falls beyond."""

import jax.numpy as jnp
import numpy as np
from entry import Entry, above, below, close, holds
from references import least_squares_path
from shared import error, sum_of_squares

import gflow

EXAMPLES, SIZE, NOISE, SEEDS = 40, 10, 0.2, 20
COUNTS = (5, 10, 15, 20, 30, 36, 40, 44, 60, 100, 200, 400)


def draw_data(seed):
    """A linear target with noise, 1000 noiseless test points, and the neurons of 400 random features."""
    random = np.random.default_rng(seed)
    teacher = random.normal(size=SIZE)
    x, test = random.normal(size=(EXAMPLES, SIZE)), random.normal(size=(1000, SIZE))
    teacher /= np.linalg.norm(teacher)
    y = x @ teacher + NOISE * random.normal(size=EXAMPLES)
    return x, y, test, test @ teacher, random.normal(size=(max(COUNTS), SIZE)) / SIZE**0.5


def features(x, neurons):
    """ReLU features, divided by √p."""
    return np.maximum(x @ neurons.T, 0) / len(neurons) ** 0.5


def flow_error(seed, count, t=20.0):
    """Error of the flow of the output weights at time t to the spectral solution; no ODE solver there."""
    x, y, _, _, neurons = draw_data(seed)
    net = gflow.models.TwoLayer(jnp.asarray(neurons[:count]) / count**0.5, jnp.zeros(count))
    trainable = gflow.models.TwoLayer(False, True)
    flow = gflow.integrate(
        net, (x, y), t, loss=sum_of_squares, trainable=trainable, rtol=1e-10, atol=1e-14, save_at=2
    )
    phi = features(x, neurons[:count])
    exact = least_squares_path(phi, y, np.zeros(count), np.array([t, np.inf]))
    return error(np.asarray(flow.model.v), exact[0]), error(exact[1], np.linalg.pinv(phi) @ y)


def run(quick: bool) -> Entry:
    """Median risks of 20 seeds over the number of features, and the flow of three of them."""
    del quick
    risks, trained = np.zeros((SEEDS, len(COUNTS))), np.zeros((SEEDS, len(COUNTS)))
    for seed in range(SEEDS):
        x, y, test, target, neurons = draw_data(seed)
        for i, count in enumerate(COUNTS):
            phi = features(x, neurons[:count])
            w = np.linalg.pinv(phi) @ y
            trained[seed, i] = np.mean((phi @ w - y) ** 2)
            risks[seed, i] = np.mean((features(test, neurons[:count]) @ w - target) ** 2)
    median = np.median(risks, axis=0)
    at = dict(zip(COUNTS, median, strict=True))
    errors = np.array([flow_error(seed, count) for seed in range(3) for count in (60, 400)])
    checks = [
        below("flow at t = 20: error to the spectral solution, worst of 3 seeds", errors[:, 0].max(), 1e-7),
        below("its limit t → ∞: error to the smallest solution X⁺y, worst", errors[:, 1].max(), 1e-7),
        close("features at the peak of the median risk of 20 seeds", COUNTS[median.argmax()], EXAMPLES, 0),
        above("peak over least median risk", median.max() / median.min(), 20),
        holds("400 features: lower median risk than 20", bool(at[400] < at[20])),
        below("training error from 40 features on, worst", trained[:, COUNTS.index(40) :].max(), 1e-9),
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.loglog(COUNTS, median, "o-", ms=4, label="test risk, median of 20 seeds")
        axes.loglog(COUNTS, np.maximum(np.median(trained, axis=0), 1e-4), "s--", ms=3, label="training error")
        axes.axvline(EXAMPLES, color="k", lw=0.6)
        axes.set(xlabel="features $p$", ylabel="mean squared error", ylim=(1e-3, None))
        axes.legend()

    return Entry(
        "The flow of random features from 0 ends at the smallest solution, whose test risk peaks where "
        "features are as many as examples and falls again beyond.",
        "Belkin, Hsu, Ma and Mandal, PNAS 2019, arXiv:1812.11118",
        checks,
        draw,
    )
