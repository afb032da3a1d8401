import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from systems import Linear

import gflow
from gflow import stability

matplotlib.use("Agg")
MODEL, DATA = Linear(jnp.array([2.0, 0.0])), (np.eye(2), np.ones(2))


def lines(axes):
    return [line.get_xydata() for line in axes.get_lines()]


def test_a_comparison_shows_both_paths_threshold_and_distance():
    both = gflow.compare(MODEL, DATA, learning_rate=0.5, t_max=4.0)
    figure = gflow.plot.comparison(both)
    loss, sharpness, distance = figure.axes
    np.testing.assert_allclose(lines(loss)[0], np.stack([both.flow.t, both.flow.loss], 1))
    np.testing.assert_allclose(lines(loss)[1], np.stack([both.descent.t, both.descent.loss], 1))
    np.testing.assert_allclose(lines(sharpness)[1][:, 1], both.descent["sharpness"])
    assert np.all(lines(sharpness)[2][:, 1] == 4.0)
    np.testing.assert_allclose(lines(distance)[0][:, 1], both.distance[1:])
    assert all(axes.get_ylabel() for axes in figure.axes) and "eta" in distance.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 3 and not any(axes.get_legend() for axes in figure.axes)
    # told apart without colour
    assert abs(_lightness(loss.get_lines()[0]) - _lightness(loss.get_lines()[1])) > 0.3
    matplotlib.pyplot.close(figure)


def _lightness(line):
    return np.dot(matplotlib.colors.to_rgb(line.get_color()), [0.299, 0.587, 0.114])


def test_crossing_and_onset_are_marked():
    with pytest.warns(UserWarning, match="above its start"):
        both = gflow.compare(MODEL, DATA, learning_rate=5.0, t_max=15.0)
    assert both.crossing == 0 and both.onset == 1
    figure = gflow.plot.comparison(both)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "crossing, step 0" in labels and "onset, step 1" in labels
    matplotlib.pyplot.close(figure)


@pytest.mark.slow
def test_the_threshold_stands_beside_the_sharpness_that_it_is_for():
    both = gflow.compare(MODEL, DATA, learning_rate=0.1, t_max=0.4, optimizer=stability.Adam(0.1))
    figure = gflow.plot.comparison(both)
    _, sharpness, preconditioned, _ = figure.axes
    assert len(lines(sharpness)) == 2
    np.testing.assert_allclose(lines(preconditioned)[0][:, 1], both.descent["preconditioned_sharpness"])
    assert np.all(lines(preconditioned)[1][:, 1] == both.threshold)
    matplotlib.pyplot.close(figure)


@pytest.mark.slow
def test_descents_at_the_edge_have_a_row_each():
    observe = [gflow.observe.Sharpness(), gflow.observe.Oscillation()]
    with pytest.warns(UserWarning, match="above its start"):
        wild = gflow.descend(MODEL, DATA, 5.0, 4, save_every=2, observe=observe)
    tame = gflow.descend(MODEL, DATA, 0.5, 4, save_every=2, observe=observe[:1])
    runs = {"wild": (wild, stability.GradientDescent(5.0)), "tame": (tame, stability.GradientDescent(0.5))}
    figure = gflow.plot.edge(runs)
    loss, ratio, tame_loss, tame_ratio = figure.axes
    assert [axes.get_title("left") for axes in (loss, tame_loss)] == ["wild", "tame"]
    np.testing.assert_allclose(lines(loss)[0][:, 1], wild.step_loss)
    np.testing.assert_allclose(lines(loss)[1][:, 1], wild["midpoint_loss"])
    np.testing.assert_allclose(lines(ratio)[0], np.stack([[0, 2, 4], wild["sharpness"] / 0.4], 1))
    np.testing.assert_allclose(lines(ratio)[1][:, 1], wild["midpoint_sharpness"] / 0.4)
    assert np.all(lines(ratio)[2][:, 1] == 1) and len(lines(tame_ratio)) == 2
    crossing, onset = lines(ratio)[3:]
    assert crossing[0, 0] == 0 and onset[0, 0] == 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted({"iterates", "midway between iterates", "threshold", "crossing", "onset"})
    assert abs(_lightness(loss.get_lines()[0]) - _lightness(loss.get_lines()[1])) > 0.3
    matplotlib.pyplot.close(figure)
    with pytest.raises(ValueError, match="runs must be a dictionary"):
        gflow.plot.edge({})


def test_a_trajectory_has_a_panel_for_each_record():
    observe = {"w": lambda model, _: model.w, "matrix": lambda model, _: jnp.outer(model.w, model.w)}
    traj = gflow.integrate(MODEL, DATA, 3.0, save_at=5, observe=observe)
    figure = gflow.plot.trajectory(traj)
    assert len(figure.axes) == 3  # a matrix is no line
    np.testing.assert_allclose([line[:, 1] for line in lines(figure.axes[2])], traj["w"].T)
    assert figure.axes[-1].get_xlabel() == r"time $t$"
    one = gflow.plot.trajectory(traj, ["w"])
    assert len(one.axes) == 1
    for name in ("matrix", "nothing"):
        with pytest.raises(ValueError, match=f"{name!r} is not; this trajectory has loss, gradient_norm, w"):
            gflow.plot.trajectory(traj, [name])
    matplotlib.pyplot.close("all")


@pytest.mark.slow
def test_a_trajectory_in_another_clock_is_drawn_against_its_variable():
    separable = jnp.array([[1.0, 0.2], [-1.0, 0.3]]), jnp.array([1.0, -1.0])
    model, how = Linear(jnp.array([0.1, 0.0])), {"loss": gflow.losses.Exponential(), "save_at": 5}
    traj = gflow.integrate(model, separable, 2e3, clock=gflow.clocks.LogLoss(), **how)
    assert not np.isfinite(traj.t[-1])
    figure = gflow.plot.trajectory(traj)
    for axes, name in zip(figure.axes, traj.records, strict=True):
        np.testing.assert_array_equal(lines(axes)[0], np.stack([traj.s, traj[name]], 1))
    assert figure.axes[-1].get_xlabel() == r"variable $s$ of the clock"
    clock = gflow.clocks.TwoPhase(second=gflow.clocks.LogLoss())
    traj = gflow.integrate(model, separable, 2e3, clock=clock, **how)
    figure = gflow.plot.trajectory(traj, ["log_loss"])
    path, switch = lines(figure.axes[0])
    np.testing.assert_array_equal(path[1:], np.stack([traj.log_t, traj["log_loss"]], 1)[1:])
    assert np.isnan(path[0, 0]) and switch[0, 0] == traj.log_t[traj.switch]
    assert figure.axes[-1].get_xlabel() == r"$\log t$"
    matplotlib.pyplot.close("all")


def test_an_ensemble_is_not_drawn():
    models = Linear(jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    traj = gflow.integrate(models, DATA, 1.0, save_at=3, ensemble=True)
    with pytest.raises(ValueError, match="a single run, but is that of an ensemble of 3 members; plot"):
        gflow.plot.trajectory(traj)


def test_the_largest_of_several_eigenvalues_is_drawn_over_a_threshold_that_moves():
    optimizer = stability.GradientDescent(lambda step: 0.5 + 0.1 * step)
    traj = gflow.descend(MODEL, DATA, optimizer, 4, save_every=2, observe=[gflow.observe.Sharpness(k=2)])
    figure = gflow.plot.edge({"two": (traj, optimizer)})
    expected = traj["sharpness"][:, 0] * np.array([0.5, 0.7, 0.9]) / 2
    np.testing.assert_allclose(lines(figure.axes[1])[0][:, 1], expected)
    matplotlib.pyplot.close(figure)
