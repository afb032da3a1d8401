"""The sharpness of a tanh network by torch's libraries, those of them that are installed."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse.linalg

arpack: Any = scipy.sparse.linalg
LIBRARIES = ("pyhessian", "hessian_eigenthings", "curvlinops")  # as they are imported

# A method takes a seed and gives the largest eigenvalue and the Hessian-vector products that it took.
Method = Callable[[int], tuple[float, int]]


def methods(layers: list[tuple[np.ndarray, np.ndarray]], data: tuple) -> tuple[dict[str, Method], list[str]]:
    """The methods of the libraries that can be imported, and the names of the others.

    `layers` are weights and biases; the loss is ½ mean ‖f(x) − y‖².
    """
    found: dict[str, Method] = {}
    missing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
        else:
            found |= globals()[f"_{name}"](*_in_torch(layers, data))
    return found, missing


def _in_torch(layers: list[tuple[np.ndarray, np.ndarray]], data: tuple) -> tuple[Any, tuple[Any, Any]]:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)  # more of them wait for each other on a network as small as this
    modules: list[Any] = []
    for weight, bias in layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.array(weight)))
            linear.bias.copy_(torch.tensor(np.array(bias)))
        modules += [linear, torch.nn.Tanh()]
    x, y = (torch.tensor(np.array(part)) for part in data)
    return torch.nn.Sequential(*modules[:-1]), (x, y)


def _loss(outputs: Any, targets: Any) -> Any:
    return 0.5 * ((outputs - targets) ** 2).sum(1).mean()


def _pyhessian(model: Any, data: Any) -> dict[str, Method]:
    """Power iteration, in double precision, to its default tolerance and to a finer one."""
    torch: Any = importlib.import_module("torch")
    module: Any = sys.modules["pyhessian.hessian"]  # its name in the package is that of the class
    product = module.hessian_vector_product

    def by(tol):
        def run(seed):
            count = 0

            def counted(*arguments):
                nonlocal count
                count += 1
                return product(*arguments)

            torch.manual_seed(seed)
            usual = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)  # of its random vectors
            module.hessian_vector_product = counted
            try:
                solver = module.hessian(model, _loss, data, cuda=False)
                (value, *_), _ = solver.eigenvalues(maxIter=1000, tol=tol)
            finally:
                module.hessian_vector_product = product
                torch.set_default_dtype(usual)
                model.zero_grad(set_to_none=True)
            return value, count

        return run

    return {"PyHessian": by(1e-3), "PyHessian, tol 1e-9": by(1e-9)}


def _hessian_eigenthings(model: Any, data: Any) -> dict[str, Method]:
    """Lanczos iterations, whose number is to be given."""
    eigenthings: Any = importlib.import_module("hessian_eigenthings")

    def by(steps):
        def run(seed):
            loss = lambda model, batch: _loss(model(batch[0]), batch[1])
            operator = eigenthings.HessianOperator(model, [data], loss)
            product, count = operator.matvec, 0

            def counted(v):
                nonlocal count
                count += 1
                return product(v)

            operator.matvec = counted
            found = eigenthings.lanczos(operator, k=1, max_iter=steps, which="LA", seed=seed)
            return float(found.eigenvalues[0]), count

        return run

    return {f"hessian-eigenthings, {steps} steps": by(steps) for steps in (20, 40)}


def _curvlinops(model: Any, data: Any) -> dict[str, Method]:
    """Its operator in scipy's eigsh."""
    torch: Any = importlib.import_module("torch")
    curvlinops: Any = importlib.import_module("curvlinops")

    def run(seed):
        params = list(model.parameters())
        # torch's mean is over outputs, too
        scale = data[1].shape[1] / 2
        operator = curvlinops.HessianLinearOperator(model, torch.nn.MSELoss(), params, [data]).to_scipy()
        count = 0

        def counted(v):
            nonlocal count
            count += 1
            return operator @ v

        counting = arpack.LinearOperator(operator.shape, matvec=counted, dtype=np.float64)
        start = np.random.default_rng(seed).normal(size=operator.shape[0])
        values = arpack.eigsh(counting, 1, which="LA", tol=1e-6, v0=start, return_eigenvectors=False)
        return scale * float(values[0]), count

    return {"curvlinops, eigsh": run}
