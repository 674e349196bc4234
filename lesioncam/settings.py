"""Settings: frozen, typed, checked once when they are made; an unknown key is an error.

Knows nothing about flags or files' places; `--config` and `bundle.json` both come in through
`from_mapping`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lesioncam.errors import InputError
from lesioncam.schema import DEFAULT_REST_CLASS

T = TypeVar("T")


MAP_RULES = ("predicted", "maximum")


@dataclass(frozen=True)
class CropRule:
    """How a class activation map becomes a crop. Fractions of the canvas are of its side.

    Attributes:
        map: which map, a rule of `lesioncam.vision.cam.choose_map`. The default follows the
            predicted class, and so a training image's label, less than that class's own map.
        threshold: the fraction of the map's range above which a position belongs to the region.
        padding: added on each side of the region's box, as a fraction of its longer side.
        smallest: the smallest side of a box, as a fraction of the canvas.
        context: what stage 2 sees around the box, on each side, as a fraction of the canvas. At
            0.125 the smallest box is seen with half of the canvas, which at the default canvas has
            as many pixels as the network's input.

    The box says where the lesion is and sits tightly; stage 2 sees it with its surroundings, since
    a lesion cut out of its skin is harder to tell. docs/training.md has the tables.
    """

    map: str = "maximum"
    threshold: float = 0.5
    padding: float = 0.05
    smallest: float = 0.25
    context: float = 0.125

    def __post_init__(self) -> None:
        _check(self.map in MAP_RULES, "crop.map", self.map, " or ".join(MAP_RULES))
        _check(0 < self.threshold < 1, "crop.threshold", self.threshold, "a number in (0, 1)")
        _check(0 <= self.padding <= 1, "crop.padding", self.padding, "a number in [0, 1]")
        _check(0.25 <= self.smallest <= 1, "crop.smallest", self.smallest, "a number in [0.25, 1]")
        _check(0 <= self.context <= 0.5, "crop.context", self.context, "a number in [0, 0.5]")

    @property
    def smallest_view(self) -> float:
        """The smallest side of what stage 2 sees, as a fraction of the canvas."""
        return min(1.0, self.smallest + 2 * self.context)


@dataclass(frozen=True)
class TrainSettings:
    """The training recipe. Every field can stand in the file that `--config` names.

    Attributes:
        backbone: a key of `lesioncam.vision.network.BACKBONES`.
        input_side: of the images that the networks take, in pixels, a multiple of 16, as a VGG
            halves them four times; None for the backbone's own.
        weights: where the backbone's weights come from, or None for random ones.
        stage1_epochs: passes over the training images for stage 1.
        stage2_epochs: passes over their crops for stage 2.
        stage2_start: the weights stage 2 starts from: `weights`, the loaded ones with a linear
            layer of its own (stage 1's best ones where none are loaded), or `stage1`, its best
            ones, as in the paper.
        coarse_share: the share of a stage's epochs, from the first, that learn from coarse images;
            the last never does.
        coarse_scale: their side, as a fraction of the input side. At 0.8 an epoch takes two thirds
            of the time.
        batch_size: images a step, over all workers together.
        learning_rate: the peak of stage 1's one-cycle schedule. A VGG has no batch normalisation:
            at 0.01, VGG-16 fell back to chance in its first epochs.
        stage2_learning_rate: likewise for stage 2.
        weight_decay: on all trained weights.
        label_smoothing: of the cross-entropy.
        balance: class weights are (1 / class frequency) to this power; 0 none, 1 full balance.
        dropout: on the pooled features.
        frozen_blocks: how many of the VGG's blocks of convolutions, from the input, stay as they
            were loaded; only applied where weights are loaded.
        mask_weight: of the loss that pulls both stages' maps onto the lesion, where `--masks` has
            its outline.
        guess_weight: likewise where the outline is guessed from colour; 0 for no guessing.
        rotate: augmentation turns by any angle up to this many degrees, and flips both ways.
        zoom: augmentation scales by up to this fraction, up or down.
        shift: augmentation moves the box by up to this fraction of its side.
        brightness: augmentation scales brightness and contrast by up to this fraction.
        colour: augmentation scales each channel by up to this fraction, and saturation by twice it.
        val_fraction: the share of images held out of training, by class, to choose the epoch, of
            those at the full side.
        canvas_scale: the canvas's side in input sides, between 1 and 2.
        stage2_weight: the final probabilities are (1 - this) x stage 1's + this x stage 2's.
        half_turn: whether the bundle's stages look at each image a second time, turned by
            180 degrees, and take the mean; scoring then takes twice as long in the networks.
        rest_class: the class of label rows with no 1.
        seed: of the split, the initial weights, the order, the augmentation and the dropout.
        crop: the crop rule.
    """

    backbone: str = "vgg16"
    input_side: int | None = None
    weights: str | None = None
    stage1_epochs: int = 20
    stage2_epochs: int = 15
    stage2_start: str = "weights"
    coarse_share: float = 0.8
    coarse_scale: float = 0.8
    batch_size: int = 32
    learning_rate: float = 0.004
    stage2_learning_rate: float = 0.004
    weight_decay: float = 1e-4
    label_smoothing: float = 0.05
    balance: float = 0.5
    dropout: float = 0.5
    frozen_blocks: int = 2
    mask_weight: float = 0.3
    guess_weight: float = 0.3
    rotate: float = 180.0
    zoom: float = 0.2
    shift: float = 0.08
    brightness: float = 0.15
    colour: float = 0.1
    val_fraction: float = 0.15
    canvas_scale: float = 2.0
    stage2_weight: float = 0.5
    half_turn: bool = False
    rest_class: str = DEFAULT_REST_CLASS
    seed: int = 0
    crop: CropRule = field(default_factory=CropRule)

    def __post_init__(self) -> None:
        for name in ("stage1_epochs", "stage2_epochs", "batch_size"):
            value = getattr(self, name)
            _check(value >= 1, name, value, "a whole number of at least 1")
        _check(
            self.input_side is None or (self.input_side >= 32 and self.input_side % 16 == 0),
            "input_side",
            self.input_side,
            "a multiple of 16 pixels, at least 32",
        )
        for name in ("learning_rate", "stage2_learning_rate"):
            value = getattr(self, name)
            _check(0 < value <= 1, name, value, "a number in (0, 1]")
        for name in (
            "label_smoothing", "dropout", "zoom", "shift", "brightness", "colour", "weight_decay",
        ):  # fmt: skip
            value = getattr(self, name)
            _check(0 <= value < 1, name, value, "a number in [0, 1)")
        for name in ("balance", "stage2_weight", "mask_weight", "guess_weight"):
            value = getattr(self, name)
            _check(0 <= value <= 1, name, value, "a number in [0, 1]")
        _check(0 <= self.coarse_share < 1, "coarse_share", self.coarse_share, "in [0, 1)")
        _check(0.25 <= self.coarse_scale <= 1, "coarse_scale", self.coarse_scale, "in [0.25, 1]")
        _check(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "a number in (0, 1)")
        _check(1 <= self.canvas_scale <= 2, "canvas_scale", self.canvas_scale, "from 1 to 2")
        _check(
            self.crop.smallest_view * self.canvas_scale >= 0.5,
            "crop.smallest",
            self.crop.smallest,
            "at least 0.5 / canvas_scale - 2 x crop.context, so that a crop has half the input's "
            "pixels each way",
        )
        starts = ("weights", "stage1")
        _check(self.stage2_start in starts, "stage2_start", self.stage2_start, " or ".join(starts))
        _check(0 <= self.rotate <= 180, "rotate", self.rotate, "degrees from 0 to 180")
        _check(0 <= self.frozen_blocks <= 5, "frozen_blocks", self.frozen_blocks, "0 to 5")
        _check(self.seed >= 0, "seed", self.seed, "a whole number of at least 0")


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, as `dataclasses.asdict` gives them; those of a part as `part.name`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def from_mapping(kind: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Make settings of class `kind` from parsed TOML or JSON.

    Args:
        kind: a frozen dataclass of this package.
        mapping: its fields, nested settings as nested mappings; those left out keep their default.
        where: the file (and section) the mapping came from, for messages.

    Raises:
        InputError: an unknown key, a missing one that has no default, or a value of another type
            or outside its range.
    """
    known = typing.get_type_hints(kind)
    unknown = sorted(set(mapping) - set(known))
    if unknown:
        raise InputError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(known)}"
        )
    values = {
        name: _convert(known[name], value, f"{where}: {name}") for name, value in mapping.items()
    }
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except TypeError:
        needed = [
            item.name
            for item in dataclasses.fields(kind)  # type: ignore[arg-type]
            if item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
            and item.name not in mapping
        ]
        raise InputError(f"{where}: missing {', '.join(needed)}") from None


def _convert(expected: Any, value: Any, where: str) -> Any:
    """Check a parsed value against a field's type; lists become tuples, ints floats."""
    if dataclasses.is_dataclass(expected) and isinstance(value, Mapping):
        return from_mapping(typing.cast("type[Any]", expected), value, where)
    if expected is Any:
        return value
    if isinstance(expected, types.UnionType):
        if value is None:
            return None
        expected = next(part for part in typing.get_args(expected) if part is not types.NoneType)
    origin = typing.get_origin(expected)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(expected)[0]
        return tuple(_convert(item, part, where) for part in value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or expected
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{where}: expected {wanted.__name__}, got {value!r}")
    return value


def _check(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}; expected {wanted}")
