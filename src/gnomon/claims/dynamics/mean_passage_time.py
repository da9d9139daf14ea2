r"""The mean time in which noisy descent passes from one minimum to another is that of its diffusion, exactly.

$\tau = \frac{1}{T} \int_a^c dy \, e^{U(y) / T} \int_{-\infty}^y dz \, e^{-U(z) / T}$

The same chains as in `kramers-rate`, without its expansion in $T / \Delta U$.  What is left is the step: it changes the potential by
$-\frac{\eta}{4} U'^2 + \frac{\eta T}{2} U''$, and so $\Delta U / T$ by $\frac{\eta}{2} (U''(b) - U''(a))$; the rate at $T = \Delta U$ and above is as well predicted.
"""

from gnomon.claims.dynamics.kramers_rate import Settings, measure
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.numerics.potentials import double_well
from gnomon.theory import dynamics


def predict(s: Settings) -> Reading:
    """One over the mean passage time, by quadrature."""
    time = float(dynamics.mean_passage_time(double_well(), -1.0, 1.0, temperature=s.temperature, wall=-3.0))
    return Reading.predicted("passage_rate", 1 / time, unit="1 / time", source=Source("hanggi1990", "section VII"), assumes=(f"lr U'' << 1 (lr = {s.lr:g}, U'' = 8 and -4)",))


CLAIM = Claim(
    version=1, entry="D5", source=Source("hanggi1990", "section VII"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 12 * s.lr * float(predict(s).value), because="twice what the step changes: it adds lr (U''(a) - U''(b)) / 2 = 6 lr to the logarithm of the rate"),
    scales={
        "smoke": Settings(0.4, 0.01, 6.0, chains=2_000, replicates=6), "standard": Settings(0.3, 0.004, 20.0, chains=4_000, replicates=8),
        "paper": Settings(0.2, 0.004, 60.0, chains=40_000, replicates=20),
    }, sabotage=Sabotage("a temperature a tenth lower than stated", heat=0.9),
)  # fmt: skip
