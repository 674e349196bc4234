import pytest

from benchmarks.process import Finished
from benchmarks.speed import FEW, Measured, figures

START, EACH = 20.0, 0.2  # seconds


def measured(few_late: float, many_late: float, images: int = 320) -> Measured:
    """A round of a program whose runs took so many seconds longer."""
    return Measured(
        images,
        Finished(START + few_late + FEW * EACH, 100.0),
        Finished(START + many_late + images * EACH, 200.0),
    )


def test_figures_of_a_round() -> None:
    found = figures([measured(0, 0)])
    assert found["steady"].median == pytest.approx(1 / EACH)
    assert found["start"].median == pytest.approx(START)
    assert found["whole"].median == pytest.approx(320 / (START + 320 * EACH))
    assert found["peak_mib"].median == 200


def test_a_slow_start_of_one_round_makes_no_rate_faster() -> None:
    found = figures([measured(10, 0), measured(0, 0), measured(0, 0)])
    assert found["steady"].values == pytest.approx((1 / EACH,) * 3)
    assert found["start"].values == pytest.approx((START + 10, START, START))
