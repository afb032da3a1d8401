"""B5: diagonal networks, sparser the deeper they are."""

import numpy as np
from entry import Entry, below, holds
from references import max_margin, max_margin_in, nonnegative_residual
from separable import SEEDS, follow, real, separated, teacher, worst

import gflow
from gflow.clocks import LogLoss, TwoPhase

LEVEL = 1e8
BETA = {"beta": lambda model, _: model.effective()}


def depth_two(x, y, init):
    """−log L along the flow, its ‖β‖₁ at margin 1 over the smallest less 1, and that of the ℓ₂ separator."""
    z = y[:, None] * x
    optimum = np.abs(max_margin_in(z, 1)).sum()
    model = gflow.models.Diagonal.constant(x.shape[1], init, 2)
    # log-loss time, because its Jacobian is symmetric, so that the steps are cheaper
    clock, save_at = TwoPhase(second=LogLoss()), np.linspace(0, 200, 801)
    flow = follow(model, (x, y), LEVEL, save_at, clock=clock, observe=BETA, rtol=1e-5, atol=1e-2 * init**2)
    beta = flow["beta"][separated(flow)]
    excess = np.abs(beta).sum(axis=1) / (beta @ z.T).min(axis=1) / optimum - 1
    euclidean = np.abs(max_margin(z)).sum() / optimum - 1
    return -flow["log_loss"][separated(flow)], excess, euclidean


def mirror(seed, init):
    """Distance of asinh(β/2α²) from {Zᵀν, ν ≥ 0}, where it stays, for fewer points than dimensions."""
    x, y = teacher(seed, 8, 20)
    model = gflow.models.Diagonal.constant(20, init, 2)
    beta = follow(model, (x, y), 100, np.zeros(1), rtol=1e-8, atol=1e-6 * init).model.effective()
    return nonnegative_residual(x.T * y, np.arcsinh(np.asarray(beta) / (2 * init**2)))


def depth_three(seed):
    """Σ|β|^{2/3} at margin 1 of the flow and of the largest ℓ₁ and ℓ₂ margins, and the KKT residual."""
    x, y = teacher(seed, 20, 8)
    z = y[:, None] * x
    model = gflow.models.Diagonal.constant(8, 0.1, 3)
    beta = follow(model, (x, y), 1e6, np.zeros(1), rtol=1e-7).model.effective()
    beta = np.asarray(beta) / (z @ beta).min()
    size = lambda w: np.sum(np.abs(w / (z @ w).min()) ** (2 / 3))
    on = np.abs(beta) > 1e-2 * np.abs(beta).max()
    gradient = 2 / 3 * np.abs(beta[on]) ** (-1 / 3) * np.sign(beta[on])
    active = z @ beta < 1.02
    residual = nonnegative_residual(z[active][:, on].T, gradient)
    return size(beta), size(max_margin_in(z, 1)), size(max_margin(z)), residual


def run(quick: bool) -> Entry:
    """Depth 2 on random and real data, depth 3 on random data."""
    sets = {f"random {seed}": teacher(seed, 20, 8) for seed in SEEDS}
    found = real(ones=False)
    sets |= {name: found[name] for name in (("wine",) if quick else ("iris", "wine", "digits"))}
    two = {name: depth_two(*data, 1e-2) for name, data in sets.items()}
    three = [depth_three(seed) for seed in SEEDS]
    mirrors = worst(mirror(seed, 1e-2) for seed in SEEDS)
    ends = {name: excess[-1] for name, (_, excess, _) in two.items()}

    def draw(figure):
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, (level, excess, euclidean) in two.items():
            (line,) = left.loglog(level, excess, label=name)
            left.axhline(euclidean, color=line.get_color(), ls=":", lw=0.8)
        left.set(xlabel=r"$-\log L$", ylabel=r"$\|\beta\|_1/q_{\min}$ over optimum, $-1$", xlim=(3, LEVEL))
        left.legend(title=r"$D=2$; dotted: $\ell_2$ margin", fontsize=7, title_fontsize=7)
        for i, label in enumerate(("flow", r"$\ell_1$ margin", r"$\ell_2$ margin")):
            right.bar(np.arange(3) + 0.27 * (i - 1), [row[i] for row in three], 0.25, label=label)
        right.set(
            xticks=range(3),
            xlabel="random data",
            ylabel=r"$\sum_i|\beta_i|^{2/3}$ at margin 1",
            title="$D=3$",
        )
        right.set_ylim(0, 1.5 * np.max([row[:3] for row in three]))
        right.legend(fontsize=7, loc="upper right")

    return Entry(
        "The flow of a diagonal network of depth D from small weights prefers the separator with the "
        "smallest Σ|βᵢ|^{2/D} at margin 1: the smallest ℓ₁ norm for D = 2, a stationary point for D = 3.",
        "Gunasekar, Lee, Soudry and Srebro, NeurIPS 2018, arXiv:1806.00468; "
        "Moroshko et al., NeurIPS 2020, arXiv:2007.06738",
        [
            below("D = 2: asinh(β/2α²) = Zᵀν, ν ≥ 0: relative residual", mirrors, 1e-6),
            below(
                f"D = 2: ‖β‖₁/optimum − 1 at −log L = {LEVEL:.0e}",
                worst(ends.values()),
                5e-3,
            ),
            below(
                "D = 2: the same over that of the largest ℓ₂ margin",
                worst(ends[name] / two[name][2] for name in two),
                0.2,
            ),
            below("D = 3: KKT residual at −log L = 1e6", worst(row[3] for row in three), 1e-2),
            holds(
                "D = 3: Σ|β|^{2/3} below those of the ℓ₁ and ℓ₂ margins",
                all(r[0] < min(r[1:3]) for r in three),
            ),
        ],
        draw,
    )
