from pathlib import Path

from benchmarks.control_plane import measure


def test_the_steps_go_through_every_image(tmp_path: Path) -> None:
    steps = list(measure(3_000, tmp_path))
    assert {step.images for step in steps} == {3_000}
    assert [step.name for step in steps[1:]] == [
        "local folders listed",
        "earlier rows read and checked",
        "manifest written",
        "pending images: 33",  # each hundredth is new, each thousandth was unreachable
        "compacted, 1 new parts among them",
        "final tally: 0 without a row",
    ]
    assert all(step.seconds > 0 and step.mib > 0 for step in steps)
