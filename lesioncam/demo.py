"""The demo: generates images of lesions, some of them broken, and runs every verb on them."""

import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from lesioncam.api import evaluate, report, score, train
from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import bundle_exists

log = logging.getLogger("lesioncam")

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
WIDTH, HEIGHT = 480, 360
TRAINING_IMAGES, TEST_IMAGES = 300, 120
_DOT = 8  # half the side of the square that holds a dot, in pixels

SETTINGS = TrainSettings(
    backbone="tiny",
    stage1_epochs=20,
    stage2_epochs=10,
    batch_size=16,
    learning_rate=0.02,
    stage2_learning_rate=0.01,
    dropout=0.1,
    low_resolution_fraction=0.0,
)


def draw_lesion(name: str, random: np.random.Generator) -> Image.Image:
    """Draw one image of a class: (HEIGHT, WIDTH), a small lesion off the center of a patch of skin.

    Color, border, texture and asymmetry differ by class: a nevus is round and evenly brown; a
    melanoma is ragged, asymmetric and of several dark colors; a seborrheic keratosis has a sharp
    border, is tan, and is full of pale dots.
    """
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    skin = np.array([224, 178, 152]) + random.normal(0, 12, 3)
    shade = 1 - 0.25 * (((x / WIDTH - 0.5) ** 2 + (y / HEIGHT - 0.5) ** 2) * 2)
    pixels = skin * shade[..., None] + random.normal(0, 5, (HEIGHT, WIDTH, 1))

    radius = random.uniform(0.09, 0.15) * WIDTH
    center_x = random.uniform(0.25, 0.75) * WIDTH
    center_y = random.uniform(0.25, 0.75) * HEIGHT
    angle = np.arctan2(y - center_y, x - center_x)
    ragged = {"melanoma": 0.16, "seborrheic_keratosis": 0.06, "nevus": 0.03}[name]
    border = sum(
        random.normal(0, ragged) / k**0.5 * np.cos(k * angle + random.uniform(0, 6.3))
        for k in range(2, 8)
    )
    from_center = np.hypot(x - center_x, y - center_y) / (radius * (1 + border))
    softness = {"melanoma": 0.10, "seborrheic_keratosis": 0.03, "nevus": 0.12}[name]
    inside = 1 / (1 + np.exp((from_center - 1) / softness))

    base = {
        "melanoma": (78, 48, 44),
        "seborrheic_keratosis": (150, 112, 78),
        "nevus": (134, 84, 60),
    }[name]
    lesion = np.broadcast_to(np.array(base) + random.normal(0, 10, 3), pixels.shape).copy()
    if name == "melanoma":
        for color in ((40, 44, 70), (20, 16, 20), (150, 70, 70)):
            direction = random.uniform(0, 6.3)
            patch_x = center_x + np.cos(direction) * radius * 0.5
            patch_y = center_y + np.sin(direction) * radius * 0.5
            patch = np.exp(-((x - patch_x) ** 2 + (y - patch_y) ** 2) / (radius * 0.4) ** 2)
            lesion += (np.array(color) - lesion) * patch[..., None]
    if name == "seborrheic_keratosis":
        for _ in range(30):
            direction, distance = random.uniform(0, 6.3), random.uniform(0, 0.9) * radius
            x0 = int(center_x + np.cos(direction) * distance) - _DOT
            y0 = int(center_y + np.sin(direction) * distance) - _DOT
            square = lesion[y0 : y0 + 2 * _DOT, x0 : x0 + 2 * _DOT]
            square += (np.array((226, 206, 170)) - square) * _dot()[..., None]
    pixels = pixels * (1 - inside[..., None]) + lesion * inside[..., None]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9)))


def _dot() -> np.ndarray:
    """The opacity of a pale dot: (2 * _DOT, 2 * _DOT) in [0, 1], highest at its center."""
    offset = np.arange(-_DOT, _DOT) + 0.5
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 2.2**2))


def draw_images(folder: Path, count: int, seed: int) -> None:
    """Write `count` JPEGs, classes in rotation, to `folder`/images, and `folder`/labels.csv."""
    random = np.random.default_rng(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        draw_lesion(name, random).save(images / f"DRAWN_{number:05d}.jpg", quality=90)
        columns = {other: float(other == name) for other in CLASSES[:2]}
        rows.append({"image_id": f"DRAWN_{number:05d}", **columns})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


def break_images(folder: Path) -> None:
    """Write what every real collection also holds: broken images, and a file that is no image."""
    buffer = io.BytesIO()
    draw_lesion("nevus", np.random.default_rng(0)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    (images / "cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "not an image.jpg").write_text("saved from a web page by mistake\n")
    (images / "notes.txt").write_text("skipped: not an image file name\n")


def draw_demo(folder: Path) -> None:
    """Draw the demo's training and test images, unless an earlier run did."""
    done = folder / "test" / "labels.csv"
    if done.exists():
        return
    log.info("generating %d training and %d test images", TRAINING_IMAGES, TEST_IMAGES)
    draw_images(folder / "train", TRAINING_IMAGES, seed=1)
    break_images(folder / "test")
    draw_images(folder / "test", TEST_IMAGES, seed=2)


def run_demo(folder: Path) -> str:
    """Generate images, train, score, evaluate and report under `folder`; returns text to print.

    A second run repeats nothing that the first one finished, except the evaluation and the report.
    """
    draw_demo(folder)
    bundle, scores = folder / "bundle", folder / "scores"
    if not bundle_exists(str(bundle)):
        train(folder / "train/images", folder / "train/labels.csv", bundle, settings=SETTINGS)
    summary = score(folder / "test/images", scores, bundle=bundle)
    evaluation = evaluate(scores, folder / "test/labels.csv", overlays=12)
    page = report(scores, labels=folder / "test/labels.csv")
    final = evaluation["metrics"]["final"]["mean"]
    return (
        f"{evaluation['markdown']}\n"
        f"{summary['listed']} images: {summary['ok']} scored, {summary['failed']} failed (see "
        f"error_kind)\n"
        f"mean AUC of the final probabilities on generated test images: {final['auc']:.3f}\n\n"
        f"scores:     {scores}\n"
        f"evaluation: {evaluation['output']} (overlays.png shows CAMs and boxes)\n"
        f"report:     {page['output']}/report.html (open it in a browser)\n\n"
        f"Read the scores:\n"
        f"    import pandas as pd\n"
        f"    scores = pd.read_parquet({str(scores)!r})\n"
        f"    print(scores[['image_id', 'status', 'prediction', 'p_melanoma', 'error_kind']])"
    )
