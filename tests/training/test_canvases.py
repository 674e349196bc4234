"""Canvases: which images they hold, and what happens when a source file is gone."""

from pathlib import Path

import numpy as np
import pytest
import ray

from lesioncam.demo import draw_images
from lesioncam.errors import RunFailedError
from lesioncam.training.canvases import CHUNK, Canvases, _decode_chunk, decode_canvases
from lesioncam.vision.decode import decode

SIZE = 32


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    """One image more than a chunk takes; the third is empty."""
    draw_images(tmp_path, CHUNK + 1, seed=0)
    paths = sorted((tmp_path / "images").iterdir())
    paths[2].write_bytes(b"")
    return [str(path) for path in paths]


@pytest.mark.usefixtures("local_ray")
def test_images_are_gathered_in_any_order_and_bad_ones_counted(uris: list[str]) -> None:
    decoded = decode_canvases(uris, SIZE)
    assert decoded.good.tolist() == [0, 1, *range(3, CHUNK + 1)]
    assert decoded.failed == {"empty": 1}
    assert len(decoded.canvases) == len(decoded.thumbnails) == len(decoded.estimated_masks) == CHUNK
    wanted = [CHUNK - 1, 0, 2, 2]
    found = decoded.canvases.join(decoded.canvases.take(np.array([0]))).gather(np.array(wanted))
    for number, canvas in zip(wanted, found, strict=True):
        data = Path(uris[decoded.good[number]]).read_bytes()
        np.testing.assert_array_equal(canvas, decode(data, SIZE).canvas)


@pytest.mark.usefixtures("local_ray")
def test_an_image_that_cannot_be_read_again_is_an_error_and_not_black(
    uris: list[str],
) -> None:
    before = decode_canvases(uris[:CHUNK], SIZE).canvases
    Path(uris[5]).unlink()
    again, _ = _decode_chunk(uris[:CHUNK], SIZE)  # as Ray does when a node is lost
    rebuilt = Canvases((ray.put(again),), before.rows)
    others = np.array([0, 1, 2, 3, 5])
    np.testing.assert_array_equal(rebuilt.gather(others), before.gather(others))
    with pytest.raises(RunFailedError, match="could not be read again after its node was lost"):
        rebuilt.gather(np.array([4]))
