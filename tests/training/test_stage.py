"""A stage's loss, and what its checkpoint keeps."""

import math
from dataclasses import replace

import numpy as np
import torch

from lesioncam.settings import TrainSettings
from lesioncam.training.batches import Batch, Examples
from lesioncam.training.canvases import Canvases
from lesioncam.training.stage import StageState, class_loss, compared, summed_loss
from lesioncam.vision.cam import choose_map, class_activation_maps, lesion_loss
from lesioncam.vision.network import VGGGAP
from tests.training.small import flat_dataset

SIZES = (128, 224, 224, 224)


def test_the_weights_kept_as_best_are_the_best_epochs() -> None:
    network = VGGGAP("tiny", 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1)
    state = StageState()
    best = []
    for epoch, auc in enumerate((0.9, 0.7, 0.8, 0.75), start=1):
        for parameter in network.parameters():
            parameter.data.fill_(epoch)  # in place, as an optimizer changes them
        state.add({"epoch": epoch, "mean_auc": auc, "loss": 0.5}, SIZES)
        state.keep(network, optimizer, schedule)
        assert (state.network["linear.weight"] == epoch).all()
        best.append(float(state.best["linear.weight"].mean()) if state.best else None)
    assert best == [None, 2, 3, 3]
    assert (state.epoch, state.best_epoch, len(state.history)) == (4, 3, 4)


def batch(labels: list[int], lesions: torch.Tensor, weight: float, classes: int = 3) -> Batch:
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    weights = torch.full((len(labels),), weight)
    known = torch.ones(len(labels), classes, dtype=torch.bool)
    return Batch(images, torch.tensor(labels), known, lesions, weights, len(labels), 0.0)


def test_a_class_that_its_collection_lacks_does_not_count_for_an_image() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 1.0]], requires_grad=True)
    shown = batch([0, 2], torch.zeros(2, 4, 4), 0.0)
    shown = replace(shown, known_classes=torch.tensor([[True, False, True], [True, True, True]]))
    class_weights = torch.tensor([2.0, 1.0, 0.5])
    loss = class_loss(logits, shown, class_weights, smoothing=0.1)
    of_two = torch.nn.functional.cross_entropy(
        logits[:1, [0, 2]], torch.tensor([0]), class_weights[[0, 2]],
        label_smoothing=0.1, reduction="sum",
    )  # fmt: skip
    of_three = torch.nn.functional.cross_entropy(
        logits[1:], torch.tensor([2]), class_weights, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(loss, of_two + of_three)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 1.0]])
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    lesions = (torch.arange(32).view(2, 4, 4) % 3 == 0).float()
    class_weights, smooth = np.array([2.0, 1.0, 0.5]), 0.1
    settings = TrainSettings(label_smoothing=smooth)
    labels = [0, 2]
    by_class = 0.0
    for row, label in zip(logits.numpy(), labels, strict=True):
        logs = row - math.log(np.exp(row).sum())
        target = smooth / 3 + (1 - smooth) * (np.arange(3) == label)
        by_class -= float((target * class_weights * logs).sum())
    by_place = float(lesion_loss(maps.amax(dim=1), lesions).sum())

    def loss(weight: float, chosen: TrainSettings = settings) -> float:
        shown = batch(labels, lesions, weight)
        return float(summed_loss(logits, maps, shown, torch.tensor(class_weights).float(), chosen))

    assert math.isclose(loss(0.0), by_class, rel_tol=1e-5)
    assert math.isclose(loss(0.3), by_class + 0.3 * by_place, rel_tol=1e-5)
    predicted = float(lesion_loss(maps[[0, 1], [0, 2]], lesions).sum())
    other = replace(settings, crop=replace(settings.crop, map="predicted"))
    assert math.isclose(loss(0.3, other), by_class + 0.3 * predicted, rel_tol=1e-5)


def test_masks_pull_the_map_onto_the_lesion() -> None:
    random, count = np.random.default_rng(0), 8
    images = torch.full((count, 3, 48, 48), 200, dtype=torch.uint8)
    lesions = torch.zeros(count, 6, 6)
    labels = random.integers(0, 2, count).tolist()
    for number, (row, column) in enumerate(random.integers(2, 5, (count, 2)).tolist()):
        lesions[number, row : row + 2, column : column + 2] = 1
        rows, columns = (slice(8 * start, 8 * start + 16) for start in (row, column))
        images[number, :, rows, columns] = 90
        images[number, labels[number], :8] = 20  # the class shows elsewhere

    def peaks_inside(weight: float) -> float:
        torch.manual_seed(0)
        network = VGGGAP("tiny", 2, dropout=0.0)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
        shown = batch(labels, lesions, weight, classes=2)
        for _ in range(30):
            logits, features = network(images)
            maps = class_activation_maps(features, network.linear.weight)
            loss = summed_loss(logits, maps, shown, torch.ones(2), TrainSettings()) / count
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        peaks = choose_map(maps, logits, "maximum").flatten(1).argmax(dim=1)
        return float(lesions.flatten(1)[torch.arange(count), peaks].mean())

    assert peaks_inside(0.3) > 0.8
    assert peaks_inside(0.0) < 0.2


def test_epochs_are_compared_on_collections_with_all_classes_if_each_class_is_held_out() -> None:
    examples = Examples(
        canvases=Canvases((), np.arange(6)),
        boxes=np.zeros((6, 4), int),
        labels=np.array([0, 1, 0, 1, 0, 1]),
        held_out=np.array([True, True, True, True, True, False]),
        lesion_masks=flat_dataset(*range(6)).lesion_masks,
        known_classes=np.array([[True, True]] * 3 + [[True, False]] * 3),
    )
    assert compared(examples, 2).tolist() == [True] * 3 + [False] * 3
    examples = replace(examples, held_out=np.array([True, False, True, True, True, False]))
    assert compared(examples, 2).tolist() == examples.held_out.tolist()
