from pathlib import Path

from PIL import Image

from benchmarks.images import SIZES, write_images


def test_images_have_their_size_and_a_photographs_bytes(tmp_path: Path) -> None:
    paths = sorted(write_images(tmp_path, SIZES[0], 3).iterdir())
    assert len(paths) == 3
    for path in paths:
        with Image.open(path) as image:
            assert image.size == SIZES[0]
            assert image.format == "JPEG"
        assert 0.1 < path.stat().st_size / (SIZES[0][0] * SIZES[0][1]) < 0.3
    assert len({path.read_bytes() for path in paths}) == 3


def test_the_first_images_are_the_same_whatever_the_count(tmp_path: Path) -> None:
    size = (300, 200)
    few, many = (write_images(tmp_path / str(count), size, count) for count in (2, 30))
    for path in few.iterdir():
        assert path.read_bytes() == (many / path.name).read_bytes()
    assert len(list(many.iterdir())) == 30
    assert write_images(tmp_path / "30", size, 30) == many
