r"""On-line learning of a soft committee machine from another, with many inputs, follows ordinary differential equations of a few overlaps.

$\frac{d Q_{ik}}{dt} = \eta \langle \delta_i x_k + \delta_k x_i \rangle + \eta^2 \langle \delta_i \delta_k \rangle, \quad \frac{d R_{in}}{dt} = \eta \langle \delta_i y_n \rangle$

$Q = J J^T$ and $R = J B^T$ are the students' overlaps with each other and with the teacher's units, $t$ the number of examples over that of inputs.  Measured is the
generalization error of the students that have learnt, averaged over them.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.teacher_student import committee, learn_on_line, orthogonal_teacher
from gnomon.theory import mean_field


@dataclass(frozen=True)
class Settings:
    """Inputs, units of student and teacher, the learning rate, times; students in a block, examples that they are tested on; what multiplies the rate."""

    inputs: int
    units: tuple[int, int]
    lr: float
    times: tuple[float, ...]
    students: int
    tests: int
    replicates: int
    factor: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The student's first weights and the teacher's."""
    return 0.5 * chance.normal(s.units[0], s.inputs, rng=rng) / s.inputs**0.5, orthogonal_teacher(s.units[1], s.inputs, rng=rng)


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """From the overlaps at the start; with N inputs each of these numbers is off by the order of lr / N."""
    student, teacher = shared
    found = mean_field.teacher_student_path(student @ student.T, student @ teacher.T, teacher @ teacher.T, lr=s.lr, times=s.times)
    return found.replace(error=s.units[0] * sum(s.units) * s.lr / s.inputs * found.value, error_kind="truncation")


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Reading:
    """The half square of the difference on fresh examples."""
    student, teacher = shared
    records = [round(time * s.inputs) for time in s.times]
    made = learn_on_line(student.repeat(s.students, 1, 1), teacher, lr=s.lr * s.factor, records=records, rng=rng)
    fresh = chance.normal(s.tests, s.inputs, rng=chance.child(rng, "test"))
    errors = (committee(made, fresh) - committee(teacher, fresh)).square().mean((1, 2)) / 2
    return Reading("generalization_error", errors, "loss", axes=(Axis("steps / inputs", s.times),))


CLAIM = Claim(
    version=1, entry="A3", source=Source("saad1995"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={"smoke": Settings(100, (2, 2), 1.0, (2.0, 5.0, 10.0), students=20, tests=2_000, replicates=5), "standard": Settings(100, (2, 2), 1.0, (2.0, 5.0, 10.0, 20.0), students=60, tests=4_000, replicates=8), "paper": Settings(3_000, (3, 3), 1.0, (2.0, 10.0, 50.0, 200.0), students=20, tests=10_000, replicates=10)}, sabotage=Sabotage("steps that are longer by a third", factor=1.33),
)  # fmt: skip
