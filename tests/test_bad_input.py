"""What the verbs say to arguments and runs that can't work: one sentence, and the path up to there."""

import os
import signal
import subprocess
import sys
import threading
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import Linear

import gflow

DATA = (np.ones((1, 1)), np.ones(1))
MODEL = Linear(jnp.zeros(1))


def refuses(message, function, *args, **kwargs):
    with pytest.raises(ValueError, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("t_max", [0.0, -1.0, np.nan, -np.inf])
def test_horizon(t_max):
    refuses("t_max must be a positive finite time", gflow.integrate, MODEL, DATA, t_max)
    refuses("t_max must be a positive finite", gflow.compare, MODEL, DATA, learning_rate=0.1, t_max=t_max)


def test_endless_horizon():
    refuses("t_max may be infinite only", gflow.integrate, MODEL, DATA, np.inf)
    stop = gflow.stop.LossBelow(1e-3)
    refuses("t_max may be infinite only", gflow.integrate, MODEL, DATA, np.inf, stop=stop)
    refuses("t_max must be at least one", gflow.compare, MODEL, DATA, learning_rate=0.5, t_max=0.3)


def test_arguments_of_the_wrong_kind(unchecked):
    arguments, function = (gflow.integrate, MODEL, DATA, 1.0), lambda model, data: 3.0
    refuses("observe must be a sequence.*holds a function", *arguments, observe=function)
    refuses("stop must be one or several.*holds a function", *arguments, stop=function)
    refuses("loss must return a real scalar, but returns 3.0", *arguments, loss=function)
    refuses("loss must be one of gflow.losses.*Squared", *arguments, loss=gflow.losses.Squared)
    refuses("both must be what gflow.compare returns, but a float", gflow.plot.comparison, 1.0)
    refuses("runs must be a dictionary.*a list came", gflow.plot.edge, [])
    refuses("runs must be a dictionary.*empty one came", gflow.plot.edge, {})
    refuses("runs must hold pairs.*'a' holds float, int", gflow.plot.edge, {"a": (1.0, 2)})
    refuses("path must be what gflow.integrate", gflow.plot.trajectory, 1.0)


def raising(leaf):
    raise KeyError


@pytest.mark.parametrize("trainable", [{"w": True}, "w", MODEL, lambda leaf: leaf.no_such > 1, raising])
def test_trainable_of_the_wrong_kind(trainable):
    refuses("trainable must be a function.* raised", gflow.Problem, MODEL, DATA, trainable=trainable)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_verbs_within_transformations(transform):
    three = jnp.ones(3) if transform is jax.vmap else 1.0
    wrap = lambda x: (jnp.full((1, 1), x), np.ones(1))
    hint = "from inside jax.jit.*ensemble=True.*diffeqsolve"
    for name, call in [
        ("data", lambda x: gflow.integrate(MODEL, wrap(x), 1.0)),
        ("data", lambda x: gflow.compare(MODEL, wrap(x), learning_rate=0.1, t_max=1.0)),
        ("model", lambda x: gflow.integrate(Linear(x[None]), DATA, 1.0)),
        ("t_max", lambda x: gflow.integrate(MODEL, DATA, x)),
        ("optimizer", lambda x: gflow.descend(MODEL, DATA, x, 3)),
    ]:
        loss = lambda x, call=call: jnp.sum(call(x).loss)
        refuses(f"{name} must hold numbers.*{hint}", transform(loss), three)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_a_loss_that_closes_over_a_number_without_a_value(transform):
    def final(x):
        loss = lambda model, data: jnp.sum((model.w - x) ** 2)
        return gflow.integrate(MODEL, None, 1.0, loss=loss).loss[-1]

    hint = "without values from inside jax.jit.*ensemble=True.*diffeqsolve"
    refuses(hint, transform(final), 1.0)
    refuses(hint, jax.jit(lambda: jnp.sum(gflow.integrate(MODEL, DATA, 1.0).loss)))


def test_targets_without_the_axis_of_a_single_output():
    network = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    refuses(r"y must have one entry per output.*y\[:, None\]", gflow.Problem, network, DATA)


def test_a_file_in_a_folder_that_is_missing(tmp_path):
    path = gflow.integrate(MODEL, DATA, 1.0, save_at=2)
    with pytest.raises(FileNotFoundError, match="path must lie in a folder that exists"):
        path.save(tmp_path / "none" / "run")
    with pytest.raises(IsADirectoryError, match="path must be that of a file"):
        path.save(tmp_path)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, np.nan, np.inf])
def test_tolerances(tolerance):
    refuses("rtol must be a positive", gflow.integrate, MODEL, DATA, 1.0, rtol=tolerance)
    refuses("atol must be a positive", gflow.integrate, MODEL, DATA, 1.0, atol=tolerance)
    if tolerance <= 0:
        refuses("rtol must lie between", gflow.sharpness, MODEL, DATA, rtol=tolerance)


def test_tolerance_beyond_the_dtype():
    refuses("rtol must be at least 2.2e-15", gflow.integrate, MODEL, DATA, 1.0, rtol=1e-15)
    single = Linear(jnp.zeros(1, dtype=jnp.float32))
    refuses("float32.*jax_enable_x64", gflow.integrate, single, DATA, 1.0, rtol=1e-8)


@pytest.mark.parametrize(
    "save_at, message",
    [
        (1, "at least 2"),
        (0, "at least 2"),
        (True, "at least 2"),
        ([0.0, 2.0], "between 0 and t_max"),
        ([-0.1, 0.5], "between 0 and t_max"),
        ([0.5, 0.2], r"save_at\[0\] = 0.5 is followed by 0.2"),
        ([0.5, 0.5], "increase strictly"),
        ([0.1, np.nan], "finite times"),
        ([], "finite times"),
        (np.ones((1, 2)), "one-dimensional"),
    ],
)
def test_save_times(save_at, message):
    refuses(message, gflow.integrate, MODEL, DATA, 1.0, save_at=save_at)


def test_save_times_that_only_float64_tells_apart():
    single = Linear(jnp.zeros(1, dtype=jnp.float32))
    refuses("increase strictly in float32", gflow.integrate, single, DATA, 1.0, save_at=[0.5, 0.5 + 1e-12])


@pytest.mark.parametrize("rate", [0.0, -0.1, np.nan, np.inf])
def test_learning_rate(rate):
    refuses(r"optimizer must be a positive finite learning rate \(or", gflow.descend, MODEL, DATA, rate, 5)
    refuses("learning_rate must be", gflow.compare, MODEL, DATA, learning_rate=rate, t_max=1.0)
    refuses("learning_rate must be", gflow.descend, MODEL, DATA, optax.adam(0.1), 5, learning_rate=rate)


def test_counts():
    for steps in (0, -3):
        refuses("steps must be a positive integer", gflow.descend, MODEL, DATA, 0.1, steps)
    refuses("save_every must be a positive", gflow.descend, MODEL, DATA, 0.1, 5, save_every=0)
    refuses("max_steps must be a positive", gflow.integrate, MODEL, DATA, 1.0, max_steps=0)
    refuses("minibatch must be at most.*1, but 2", gflow.descend, MODEL, DATA, 0.1, 5, minibatch=2)
    refuses("key must be given with minibatch", gflow.descend, MODEL, DATA, 0.1, 5, minibatch=1)
    refuses("max_hvps must be a positive", gflow.sharpness, MODEL, DATA, max_hvps=0)
    refuses("k must be a positive number", gflow.observe.Sharpness, 0)


def test_unknown_names():
    refuses(
        "quantity 'margin', which is not recorded; this run has loss, gradient_norm",
        gflow.integrate,
        MODEL,
        DATA,
        1.0,
        stop=gflow.stop.Crosses("margin", 1.0),
    )
    refuses("'loss'.*records anyway", gflow.integrate, MODEL, DATA, 1.0, observe={"loss": lambda m, d: 0.0})
    twice = [gflow.observe.Sharpness(), gflow.observe.Sharpness()]
    refuses("'sharpness'.*more than once", gflow.integrate, MODEL, DATA, 1.0, observe=twice)
    refuses("level must be a finite number", gflow.stop.LossBelow, np.nan)
    refuses(
        "only a scalar can cross a level",
        gflow.integrate,
        MODEL,
        DATA,
        1.0,
        observe={"w": lambda m, d: jnp.ones(3)},
        stop=gflow.stop.Crosses("w", 1.0),
    )


def test_solvers_that_do_not_fit():
    refuses("dt0 must be given", gflow.integrate, MODEL, DATA, 1.0, controller=diffrax.ConstantStepSize())
    refuses("dt0 must be a positive", gflow.integrate, MODEL, DATA, 1.0, dt0=-0.1)
    refuses("ODEs with one vector field", gflow.integrate, MODEL, DATA, 1.0, solver=diffrax.KenCarp4())
    refuses("must give an error estimate", gflow.integrate, MODEL, DATA, 1.0, solver=diffrax.Euler())


WRONG_TYPES = """
import diffrax, gflow, equinox as eqx, jax, numpy as np
model = eqx.nn.Linear(1, 1, key=jax.random.key(0))
data = np.ones((2, 1)), np.ones((2, 1))
calls = [
    lambda: gflow.Problem(model, data, "mse"),
    lambda: gflow.Problem(model, data, chunk_size=2.5),
    lambda: gflow.integrate(model, data, "long"),
    lambda: gflow.integrate(model, data, 1.0, solver="rk4"),
    lambda: gflow.integrate(model, data, 1.0, observe=["sharpness"]),
    lambda: gflow.integrate(model, data, 1.0, observe={"a": 3}),
    lambda: gflow.integrate(model, data, 1.0, stop=["loss"]),
    lambda: gflow.integrate(model, data, 1.0, max_steps=2.5),
    lambda: gflow.descend(model, data, "adam", 3),
    lambda: gflow.descend(model, data, 0.1, 3.5),
    lambda: gflow.descend(model, data, 0.1, 3, minibatch=1, key=0),
    lambda: gflow.compare(model, data, learning_rate=None, t_max=1.0),
    lambda: gflow.curvature.top_eigenpairs(gflow.Problem(model, data), 1.5),
    lambda: gflow.solvers.matrix_free(diffrax.Tsit5),
]
for call in calls:
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_wrong_types():
    # in a process of its own, where no type checker is faster than the library
    result = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True)
    said = result.stdout.splitlines()
    names = ["loss", "chunk_size", "t_max", "solver", "observe", "observe", "stop", "max_steps"]
    names += ["optimizer", "steps", "key", "learning_rate", "k", "solver"]
    assert not result.stderr and len(said) == len(names)
    for sentence, name in zip(said, names, strict=True):
        assert sentence.startswith(name) and "must" in sentence or "stop" in sentence


class Scalar(eqx.Module):
    w: jax.Array


def start(value):
    return Scalar(jnp.array(float(value)))


def test_loss_that_is_not_finite_at_the_start():
    refuses(
        "loss must be finite.*the loss is nan",
        gflow.integrate,
        start(-1),
        None,
        1.0,
        loss=lambda m, d: jnp.log(m.w),
    )
    refuses(
        "gradient of the loss is (inf|nan)",
        gflow.descend,
        start(0),
        None,
        0.1,
        5,
        loss=lambda m, d: jnp.sqrt(m.w),
    )


@pytest.mark.parametrize(
    "options", [{}, {"controller": diffrax.ConstantStepSize(), "dt0": 0.0625, "solver": diffrax.Midpoint()}]
)
def test_gradient_that_turns_nan_ends_within_a_few_steps(options):
    # dw/dt = −1 until w = 0.3, at t = 0.7; there the gradient turns NaN
    loss = lambda model, data: model.w + jnp.where(model.w > 0.3, 0.0, jnp.nan) * model.w
    with pytest.raises(gflow.FlowError) as caught:
        gflow.integrate(start(1), None, 5.0, loss=loss, save_at=51, **options)
    traj = caught.value.trajectory
    assert traj.status == "nonfinite" and "t = 0." in traj.reason and not traj.ok
    assert 0.55 < traj.t[-1] <= 0.7 + 1e-12 and traj.stats["steps"] < 200
    np.testing.assert_allclose(traj.loss, 1 - traj.t, rtol=1e-6)
    np.testing.assert_allclose(traj.model.w, 1 - traj.t[-1], rtol=1e-6)


def test_finite_time_blow_up_is_divergence():
    # dw/dt = w², so that w = 1/(1 − t)
    traj = gflow.integrate(start(1), None, 2.0, loss=lambda m, d: -(m.w**3) / 3, throw=False)
    assert traj.status == "diverged" and "blow-up" in traj.reason
    assert abs(traj.t[-1] - 1) < 1e-3 and np.all(np.isfinite(traj.loss))
    early = traj.t < 0.9
    np.testing.assert_allclose(traj.loss[early], -((1 - traj.t[early]) ** -3) / 3, rtol=1e-2)


def test_an_explosion_under_fixed_steps_is_never_success():
    traj = gflow.integrate(
        start(3),
        None,
        400.0,
        loss=lambda m, d: m.w**4,
        solver=diffrax.Euler(),
        controller=diffrax.ConstantStepSize(),
        dt0=1.0,
        throw=False,
    )
    assert traj.status == "diverged" and np.all(np.isfinite(traj.loss)) and np.isfinite(traj.model.w)


@pytest.mark.slow
def test_max_steps_tells_stiffness_from_tolerance():
    x = np.array([[1.0, 0.0], [0.0, 300.0]])
    explicit = dict(solver=diffrax.Tsit5(), max_steps=300, throw=False, rtol=1e-3)
    stiff = gflow.integrate(Linear(jnp.ones(2)), (x, np.zeros(2)), 50.0, **explicit)
    assert stiff.status == "max_steps" and "stiffness limits the step" in stiff.reason
    tight = gflow.integrate(
        Linear(jnp.ones(2)),
        (np.eye(2), np.zeros(2)),
        50.0,
        max_steps=30,
        rtol=1e-13,
        atol=1e-15,
        throw=False,
    )
    assert tight.status == "max_steps" and "tolerance limits the step" in tight.reason
    assert 0 < tight.t[-1] < 50 and tight.loss[-1] < tight.loss[0]


def test_ctrl_c_returns_the_partial_path():
    # a shell makes what it runs in the background deaf to Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        time.sleep(4)
        os.kill(os.getpid(), signal.SIGINT)

    for run in (
        lambda: gflow.integrate(
            MODEL,
            DATA,
            1e9,
            controller=diffrax.ConstantStepSize(),
            dt0=1e-3,
            save_at=[0.0, 1.0, 1e9],
            max_steps=10**9,
        ),
        lambda: gflow.descend(MODEL, DATA, 1e-9, 10**9, save_every=10**6),
    ):
        threading.Thread(target=interrupt).start()
        traj = run()
        assert traj.status == "interrupted" and not traj.ok and "interrupted" in traj.reason
        assert len(traj.t) >= 2 and np.all(np.isfinite(traj.loss)) and traj.stats["steps"] > 100
    signal.signal(signal.SIGINT, before)


def test_progress_bar(capfd):
    gflow.integrate(MODEL, DATA, 1.0, progress=True)
    shown = capfd.readouterr().err
    assert "100%" in shown and "t = 1/1" in shown and "loss=" in shown and "step=" in shown
    gflow.descend(MODEL, DATA, 0.1, 10, progress=True)
    assert "t = 1/1" in capfd.readouterr().err
    gflow.integrate(MODEL, DATA, 1.0)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:w is NaN")
def test_a_watched_quantity_that_turns_nan():
    observe = {"w": lambda model, data: jnp.where(model.w > 1, jnp.nan, model.w)}
    parabola = lambda model, data: 0.5 * (model.w - 2) ** 2
    stop = gflow.stop.Crosses("w", 1.5)
    options = dict(loss=parabola, observe=observe, stop=stop, throw=False)
    for traj in (
        gflow.integrate(start(0), None, 5.0, **options),
        gflow.descend(start(0), None, 0.1, 50, **options),
    ):
        assert traj.status == "nonfinite" and "watched quantity" in traj.reason
    with pytest.warns(UserWarning, match="w is NaN or infinite in some records, first at t = "):
        gflow.integrate(start(0), None, 5.0, loss=parabola, observe=observe)


def test_an_exception_inside_compiled_code_keeps_the_path():
    def loss(model, data):
        return 0.5 * (eqx.error_if(model.w, model.w > 1, "w is too big") - 2) ** 2

    for run in (
        lambda **k: gflow.integrate(start(0), None, 5.0, loss=loss, **k),
        lambda **k: gflow.descend(start(0), None, 0.1, 50, loss=loss, save_every=1, **k),
    ):
        traj = run(throw=False)
        assert traj.status == "error" and "w is too big" in traj.reason and len(traj.t) > 1
        with pytest.raises(gflow.FlowError, match="w is too big"):
            run()


@pytest.mark.filterwarnings("ignore:the parameter")
def test_the_diagnosis_of_max_steps_never_fails_itself():
    half = Scalar(jnp.array(1.0, jnp.bfloat16))
    traj = gflow.integrate(
        half, None, 1e3, loss=lambda m, d: m.w**2, max_steps=20, rtol=0.1, atol=0.1, throw=False
    )
    assert traj.status == "max_steps" and "resolves too little" in traj.reason


def test_numbers_beyond_the_dtype():
    single = Scalar(jnp.array(1.0, jnp.float32))
    loss = lambda model, data: model.w**2
    refuses("t_max must be a positive finite time in float32", gflow.integrate, single, None, 1e39, loss=loss)
    refuses("t_max must be", gflow.integrate, single, None, 1e-40, loss=loss)
    refuses("atol must be", gflow.integrate, single, None, 1.0, loss=loss, atol=1e-60)
    refuses("optimizer must be", gflow.descend, single, None, 1e-46, 3, loss=loss)
    refuses("t_max must be", gflow.integrate, MODEL, DATA, 5e-324)


def test_negative_losses_that_turn_nan_have_not_diverged():
    loss = lambda model, data: model.w - 10 + jnp.sqrt(model.w - 0.5) * 1e-9
    assert gflow.descend(start(1.05), None, 0.1, 50, loss=loss, throw=False).status == "nonfinite"


def test_names_that_collide():
    observe = {"sharpness_residual": lambda m, d: 0.0, "sharpness": gflow.observe.Sharpness()}
    refuses("two are the same", gflow.integrate, MODEL, DATA, 1.0, observe=observe)
    refuses(
        "recorded as 'sharpness'", gflow.integrate, MODEL, DATA, 1.0, observe={"s": gflow.observe.Sharpness()}
    )
    refuses("must return one array", gflow.integrate, MODEL, DATA, 1.0, observe={"s": lambda m, d: None})
    for bad in ({"rtol": -1.0}, {"max_hvps": 0}):
        refuses("must", gflow.observe.Sharpness, **bad)


def test_parameters_of_two_dtypes():
    model = Linear({"a": jnp.ones(1, jnp.float32), "b": jnp.ones(1, jnp.float64)})
    refuses("one dtype, but has float32 and float64", gflow.Problem, model, None, lambda m, d: m.w["a"][0])


def test_inputs_that_the_model_can_not_take():
    refuses(
        "x must hold examples.*shape \\(3,\\)", gflow.integrate, MODEL, (np.ones((2, 3)), np.ones(2)), 1.0
    )
    as_lists = ([[1.0], [2.0]], [1.0, 2.0])
    assert gflow.integrate(MODEL, as_lists, 1.0).ok


def test_unstable_fixed_steps_are_doubted_though_nothing_was_recorded():
    with pytest.warns(UserWarning, match="loss rose"):
        gflow.integrate(
            start(0),
            None,
            10.5,
            loss=lambda m, d: (m.w - 2) ** 2,
            solver=diffrax.Euler(),
            controller=diffrax.ConstantStepSize(),
            dt0=1.05,
            save_at=[0.0],
        )


def test_progress_without_an_end(capfd):
    stop = gflow.stop.LossBelow(np.float32(1e-3))
    gflow.integrate(MODEL, DATA, np.inf, save_at=[0.0], stop=stop, progress=True)
    assert "t = " in capfd.readouterr().err


class Batched(eqx.Module):
    """A model that takes all examples at once."""

    layer: eqx.nn.Linear

    def __call__(self, x):
        count, size = x.shape
        return jax.vmap(self.layer)(x)


@pytest.mark.parametrize(
    "model, x",
    [
        (eqx.nn.Conv2d(1, 3, 3, key=jax.random.key(0)), np.ones((4, 64))),
        (eqx.nn.LayerNorm(5), np.ones((4, 3))),
        (Batched(eqx.nn.Linear(3, 1, key=jax.random.key(0))), np.ones((4, 3))),
        (eqx.nn.BatchNorm(3, "batch", mode="batch"), np.ones((4, 3))),  # asks for a state
    ],
)
def test_a_model_that_does_not_take_one_example(model, x):
    refuses("x must hold examples .* one example, write the model for one", gflow.Problem, model, (x, x))


def multiline(model, data):
    raise ValueError("\n  the first line.\nthe second")


def test_functions_of_the_users_own_that_raise():
    observe = {"first": lambda model, data: 1.0, "second": lambda model: 1.0}
    refuses(r"observe\['second'\] must be .* TypeError", gflow.integrate, MODEL, DATA, 1.0, observe=observe)
    with pytest.raises(ValueError, match="raised ValueError: the first line$"):
        gflow.Problem(MODEL, DATA, multiline)
    for loss in (lambda model, x, y: 0.0, lambda model, data: float(jnp.sum(data[0]))):
        refuses(r"loss must be a function \(model, data\).* raised", gflow.Problem, MODEL, DATA, loss)
    refuses("observe names", gflow.integrate, MODEL, DATA, 1.0, observe={"t": lambda model, data: 1.0})


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lookahead(optax.sgd(0.1), 5, 0.5),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    ],
)
def test_optimisers_that_need_more(optimizer):
    message = "optimizer must be an optax transformation that needs no more"
    refuses(message, gflow.descend, MODEL, DATA, optimizer, 3)


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.cosine_decay_schedule(0.1, 10)])
def test_what_makes_an_optimiser_is_none(optimizer, unchecked):
    refuses("optimizer must be .* call what makes one", gflow.descend, MODEL, DATA, optimizer, 3)
    steps = optax.MultiSteps(optax.sgd(0.1), 2)
    refuses(r"take MultiSteps\(...\).gradient_transformation", gflow.descend, MODEL, DATA, steps, 3)


def test_mini_batches_without_their_size():
    refuses("minibatch must be given with key", gflow.descend, MODEL, DATA, 0.1, 3, key=jax.random.key(0))
    refuses("minibatch must be given with replace", gflow.descend, MODEL, DATA, 0.1, 3, replace=True)


def test_model_at_needs_models():
    path = gflow.descend(MODEL, DATA, 0.1, 3)
    refuses("model_at needs save_models=True", path.model_at, 0)
    refuses(
        "record must be an integer, but True",
        gflow.descend(MODEL, DATA, 0.1, 3, save_models=True).model_at,
        True,
    )
    with pytest.raises(IndexError, match="one of 4, but 7 came"):
        gflow.descend(MODEL, DATA, 0.1, 3, save_models=True).model_at(7)
