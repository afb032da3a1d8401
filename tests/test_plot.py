import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from systems import Linear

import gflow

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
