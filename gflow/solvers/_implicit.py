"""Implicit diffrax solvers without a dense Jacobian."""

import diffrax as dfx
import lineax as lx
import optimistix as optx


def matrix_free(
    solver: type[dfx.AbstractImplicitSolver] = dfx.Kvaerno5,
    *,
    linear_rtol: float = 1e-3,
    restart: int = 30,
    linear_max_steps: int = 300,
    newton_max_steps: int = 10,
) -> dfx.AbstractImplicitSolver:
    r"""A diagonally implicit diffrax solver whose stages are solved by Newton-Krylov.

    diffrax's implicit solvers factor a dense Jacobian of $P^2$ entries. Here each stage
    $z = y + \gamma h f(z)$ is solved by Newton's method, and each of its linear systems
    $(I - \gamma h J)\,\delta = r$ by GMRES on products with the Jacobian (for gradient flow:
    Hessian-vector products), so that memory is $O(P)$ (`restart` vectors).

    GMRES rather than CG: out of a saddle $I + \gamma h \nabla^2 L$ is indefinite as soon as the
    step exceeds $1/(\gamma|\lambda_{\min}|)$, where CG breaks down. A linear or Newton iteration
    that does not converge fails the stage, and the step size controller shortens the step.

    Good for tight tolerances and extreme stiffness; at loose tolerances the stabilised solvers
    cost less.

    **Arguments:**

    - `solver`: `diffrax.Kvaerno3`, `Kvaerno4`, `Kvaerno5`, or, for a `diffrax.MultiTerm` of an
        explicit and an implicit part, `KenCarp3`, `KenCarp4`, `KenCarp5` (the class).
    - `linear_rtol`: relative residual of the linear systems; an absolute one of 1e-14 will do as well, so
        that what is far smaller than one has to be scaled. Newton's tolerance is that of the step size
        controller.
    - `restart`: dimension after which GMRES restarts.
    - `linear_max_steps`, `newton_max_steps`: where to give up.

    **Returns:** an instance of `solver`, of the order and with the dense output that it has.
    """
    if not (isinstance(solver, type) and issubclass(solver, dfx.AbstractImplicitSolver)):
        raise ValueError(
            f"solver must be the class of an implicit diffrax solver, but {solver!r} came; for example "
            "diffrax.Kvaerno5."
        )
    if not 0 < linear_rtol < 1:
        raise ValueError(
            f"linear_rtol must lie between 0 and 1, but {linear_rtol} came; 1e-3 is the default."
        )
    gmres = lx.GMRES(
        rtol=linear_rtol,
        atol=1e-14,
        restart=restart,
        max_steps=linear_max_steps,
        norm=optx.two_norm,
    )
    newton = dfx.with_stepsize_controller_tols(optx.Newton)(linear_solver=gmres)
    # Each class has these two fields; the abstract class does not declare its constructor.
    return solver(root_finder=newton, root_find_max_steps=newton_max_steps)  # pyright: ignore
