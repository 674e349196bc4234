"""What a stage's checkpoint keeps."""

import torch

from lesioncam.training.stage import StageState
from lesioncam.vision.network import VGGGAP

SIDES = (128, 224, 224, 224)


def test_the_weights_kept_as_best_are_the_best_epochs() -> None:
    network = VGGGAP("tiny", 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1)
    state = StageState()
    best = []
    for epoch, auc in enumerate((0.9, 0.7, 0.8, 0.75), start=1):
        for parameter in network.parameters():
            parameter.data.fill_(epoch)  # in place, as an optimiser changes them
        state.add({"epoch": epoch, "mean_auc": auc, "loss": 0.5}, SIDES)
        state.keep(network, optimizer, schedule)
        assert (state.network["linear.weight"] == epoch).all()
        best.append(float(state.best["linear.weight"].mean()) if state.best else None)
    assert best == [None, 2, 3, 3]
    assert (state.epoch, state.best_epoch, len(state.history)) == (4, 3, 4)
