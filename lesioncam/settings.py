"""Settings: the recipe, the crop rule, the network's shape. Frozen, typed, checked when made.

Knows nothing about flags or files; `--config` and `bundle.json` both come in through `parse`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from lesioncam.columns import DEFAULT_REST_CLASS, check_classes
from lesioncam.errors import InputError

T = TypeVar("T")

MapRule = Literal["predicted", "maximum"]
MAP_RULES: tuple[MapRule, ...] = get_args(MapRule)


@plain_dataclass(frozen=True)
class Backbone:
    """A VGG's layers and its input size.

    Attributes:
        layers: as torchvision writes them: the channels of a 3 x 3 convolution, or `M` for a
            max-pool that halves the size.
        input_size: in pixels, where the recipe sets no other.
    """

    layers: tuple[int | str, ...]
    input_size: int

    @property
    def convolutions(self) -> int:
        """How many convolutions there are."""
        return len(self.layers) - self.layers.count("M")

    def cells(self, size: int) -> int:
        """The rows h of the features, and of the maps, for images of `size` pixels."""
        return size >> self.layers.count("M")

    def tensor_shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a network's tensors for so many classes, by name.

        A convolution, its ReLU and a max-pool have a number each, as in torchvision.
        """
        shapes: dict[str, tuple[int, ...]] = {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
        number, channels = 0, 3
        for layer in self.layers:
            if isinstance(layer, int):
                shapes[f"features.{number}.weight"] = (layer, channels, 3, 3)
                shapes[f"features.{number}.bias"] = (layer,)
                number, channels = number + 2, layer
            else:
                number += 1
        return shapes | {"linear.weight": (classes, channels), "linear.bias": (classes,)}


BACKBONES: Mapping[str, Backbone] = {
    "vgg16": Backbone(
        (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512), 160
    ),
    "vgg11": Backbone((64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512), 160),
    "tiny": Backbone((16, "M", 32, "M", 64, "M", 64), 96),
}


def _known_backbone(name: str) -> str:
    if name not in BACKBONES:
        raise ValueError(f"it should be one of {', '.join(BACKBONES)}")
    return name


def _class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return check_classes(names, "classes")
    except InputError as error:
        raise ValueError(str(error)) from error


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Between0And1 = Annotated[float, Field(gt=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
BackboneName = Annotated[str, AfterValidator(_known_backbone)]
InputSize = Annotated[int, Field(ge=32, multiple_of=16)]  # a VGG halves it four times


@dataclass(frozen=True, config=STRICT)
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

    The box says where the lesion is and fits it tightly. Stage 2 sees it with its surroundings:
    a lesion cut out of its skin is harder to classify.
    """

    map: MapRule = "maximum"
    threshold: Between0And1 = 0.5
    padding: Fraction = 0.05
    smallest: Annotated[float, Field(ge=0.25, le=1)] = 0.25
    context: Annotated[float, Field(ge=0, le=0.5)] = 0.125

    @property
    def smallest_crop(self) -> float:
        """The smallest side of what stage 2 sees, as a fraction of the canvas."""
        return min(1.0, self.smallest + 2 * self.context)


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """How the mean of both stages' probabilities becomes calibrated.

    Temperature scaling with a bias for each class (Alexandari, Kundaje and Shrikumar, 2020,
    "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation"):
    the final p_k is proportional to exp(biases[k]) x mean_k ^ (1 / temperature).

    Attributes:
        temperature: above 1 it makes the model less confident.
        biases: of each class, in the class order.
        images: how many it was fitted on.
        source: which images these were, in words.
    """

    temperature: PositiveFloat
    biases: tuple[float, ...]
    images: PositiveInt
    source: str


DEFAULT_SENSITIVITY = 0.95  # of flags for the class that people look for first
Criterion = Literal["sensitivity", "specificity"]


@dataclass(frozen=True, config=STRICT)
class OperatingPoint:
    """From which final probability on an image is flagged for a class, and how that was derived.

    Attributes:
        name: of the class.
        threshold: an image is flagged where its probability is this or more.
        criterion: what was wanted: of all thresholds that reach it, this one has the most of the
            other.
        wanted: how much of it, a fraction.
        sensitivity: on the images that the threshold was chosen on.
        specificity: likewise.
        positives: how many of these are of the class.
        negatives: how many are not.
        source: which images these were, in words.
    """

    name: str
    threshold: Fraction
    criterion: Criterion
    wanted: Between0And1
    sensitivity: Fraction
    specificity: Fraction
    positives: PositiveInt
    negatives: PositiveInt
    source: str


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """What inference needs to know to use the weights as they were trained.

    Attributes:
        classes: the class order of the logits.
        backbone: a key of `BACKBONES`.
        input_size: the side s of the networks' square input, in pixels.
        canvas_size: the side S of the square canvas, in pixels.
        mean: the normalization's, per channel, on pixels scaled to [0, 1].
        std: likewise.
        stage2_weight: the stages' mean is (1 - this) x stage 1's probabilities + this x stage 2's.
        crop: the crop rule.
        test_time_rotation: whether each stage averages over its input and the input rotated by
            180 degrees.
        calibration: how that mean becomes the final probabilities; None where it is them.
        operating_points: at most one for each class, in the class order.
    """

    classes: Annotated[tuple[str, ...], AfterValidator(_class_names)]
    backbone: BackboneName
    input_size: Annotated[int, Field(ge=32)]
    canvas_size: PositiveInt
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    stage2_weight: Fraction
    crop: CropRule
    test_time_rotation: bool = False
    calibration: Calibration | None = None
    operating_points: tuple[OperatingPoint, ...] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if not self.input_size <= self.canvas_size <= 2 * self.input_size:
            raise ValueError(
                f"canvas_size is {self.canvas_size}; it should be one to two times the input_size "
                f"of {self.input_size}"
            )
        if self.crop.smallest_crop * self.canvas_size < self.input_size / 2:
            raise ValueError(
                f"crop.smallest is {self.crop.smallest} and crop.context {self.crop.context}; a "
                f"crop should have at least half of the input's {self.input_size} pixels on a "
                f"canvas of {self.canvas_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if self.calibration is not None and len(self.calibration.biases) != len(self.classes):
            raise ValueError(
                f"calibration.biases has {len(self.calibration.biases)} values; it should have one "
                f"for each of the {len(self.classes)} classes"
            )
        names = [point.name for point in self.operating_points]
        if names != [name for name in self.classes if name in names]:
            raise ValueError(
                f"operating_points are of {', '.join(names)}; they should be of different classes, "
                f"in the order of {', '.join(self.classes)}"
            )
        return self

    @property
    def thresholds(self) -> dict[str, float]:
        """Class -> the final probability from which on it is flagged, where there is one."""
        return {point.name: point.threshold for point in self.operating_points}


@dataclass(frozen=True, config=STRICT)
class Quantization:
    """What int8 needs beside the weights: the ranges of the activations.

    A range begins at 0, as a ReLU comes before, so that only its end is stored. The first
    convolution has none: it is not quantized, as it costs little.

    Attributes:
        stage1: for each of stage 1's convolutions after the first, in their order, the largest
            value that it takes; larger ones are clipped to it.
        stage2: likewise for stage 2.
    """

    stage1: tuple[PositiveFloat, ...]
    stage2: tuple[PositiveFloat, ...]


def stage_ranges(quantization: Quantization | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The ranges of stage 1 and of stage 2; empty where a bundle has none."""
    return ((), ()) if quantization is None else (quantization.stage1, quantization.stage2)


@dataclass(frozen=True, config=STRICT)
class TrainSettings:
    """The training recipe. `--config` names a file that may set any field.

    Attributes:
        backbone: a key of `BACKBONES`.
        input_size: the side of the networks' square input, in pixels, a multiple of 16; None for
            the backbone's own.
        weights: where the backbone's weights come from, or None for random ones.
        stage1_epochs: passes over the training images for stage 1.
        stage2_epochs: passes over their crops for stage 2.
        stage2_start: the weights stage 2 starts from: `weights`, the loaded ones with a linear
            layer of its own (stage 1's best ones where none are loaded), or `stage1`, its best
            ones, as in the paper.
        low_resolution_fraction: the fraction of a stage's epochs, from the first, that learn from
            images of lower resolution; the last never does.
        low_resolution_scale: their side, as a fraction of the input size. At 0.8 an epoch takes
            two thirds of the time.
        batch_size: images a step, over all workers together.
        learning_rate: the peak of stage 1's one-cycle schedule. A VGG has no batch normalization:
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
        estimated_mask_weight: likewise where the outline is estimated from color; 0 for none.
        rotate: augmentation rotates by any angle up to this many degrees, and flips both ways.
        zoom: augmentation scales by up to this fraction, up or down.
        shift: augmentation moves the box by up to this fraction of its side.
        brightness: augmentation scales brightness and contrast by up to this fraction.
        color: augmentation scales each channel by up to this fraction, and saturation by twice it.
        val_fraction: the fraction of images held out of training, by class, to choose the epoch,
            of those at full resolution.
        canvas_scale: the canvas's side in input sizes, between 1 and 2.
        stage2_weight: the stages' mean is (1 - this) x stage 1's probabilities + this x stage 2's.
        flag_classes: the classes that scored images are flagged for; None for melanoma or
            malignant, where there is such a class.
        flag_sensitivity: the sensitivity that their thresholds reach on the held-out images.
        test_time_rotation: whether the bundle's stages average over each image and the image
            rotated by 180 degrees; scoring then takes twice as long in the networks.
        rest_class: the class of label rows with no 1.
        seed: of the split, the initial weights, the order, the augmentation and the dropout.
        crop: the crop rule.
    """

    backbone: BackboneName = "vgg16"
    input_size: InputSize | None = None
    weights: str | None = None
    stage1_epochs: PositiveInt = 20
    stage2_epochs: PositiveInt = 15
    stage2_start: Literal["weights", "stage1"] = "weights"
    low_resolution_fraction: Below1 = 0.8
    low_resolution_scale: Annotated[float, Field(ge=0.25, le=1)] = 0.8
    batch_size: PositiveInt = 32
    learning_rate: LearningRate = 0.004
    stage2_learning_rate: LearningRate = 0.004
    weight_decay: Below1 = 1e-4
    label_smoothing: Below1 = 0.05
    balance: Fraction = 0.5
    dropout: Below1 = 0.5
    frozen_blocks: Annotated[int, Field(ge=0, le=5)] = 2
    mask_weight: Fraction = 0.3
    estimated_mask_weight: Fraction = 0.3
    rotate: Annotated[float, Field(ge=0, le=180)] = 180.0
    zoom: Below1 = 0.2
    shift: Below1 = 0.08
    brightness: Below1 = 0.15
    color: Below1 = 0.1
    val_fraction: Between0And1 = 0.15
    canvas_scale: Annotated[float, Field(ge=1, le=2)] = 2.0
    stage2_weight: Fraction = 0.5
    flag_classes: tuple[str, ...] | None = None
    flag_sensitivity: Between0And1 = DEFAULT_SENSITIVITY
    test_time_rotation: bool = False
    rest_class: str = DEFAULT_REST_CLASS
    seed: NonNegativeInt = 0
    crop: CropRule = Field(default_factory=CropRule)

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        if self.crop.smallest_crop * self.canvas_scale < 0.5:
            raise ValueError(
                f"crop.smallest is {self.crop.smallest}; it should be at least 0.5 / canvas_scale "
                f"- 2 x crop.context, so that a crop has half of the input's pixels each way"
            )
        return self

    def resolved(self) -> "TrainSettings":
        """The same with the backbone's own input size where none is set."""
        return replace(self, input_size=self.input_size or BACKBONES[self.backbone].input_size)


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, as `dataclasses.asdict` gives them; those of a part as `part.name`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def parse(kind: type[T], content: Mapping[str, Any], where: str) -> T:
    """Make settings of class `kind` from parsed TOML or JSON.

    A list is taken for a tuple and a whole number for a fraction; no other type is converted.

    Args:
        kind: a dataclass of settings.
        content: its fields, nested settings as nested mappings; those left out keep their default.
        where: the file (and section) the content came from, for messages.

    Raises:
        InputError: an unknown key, a missing one that has no default, or a value of another type
            or outside its range.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, kind)}") from error


def explain(error: ValidationError, kind: type[Any]) -> str:
    """Everything that is wrong with settings of class `kind`, in one line."""
    return "; ".join(_explain_one(one, kind) for one in error.errors())


def _explain_one(error: ErrorDetails, kind: type[Any]) -> str:
    name, message, value = ".".join(map(str, error["loc"])), error["msg"], error["input"]
    match error["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = list(_names(kind))
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            return f"unknown key {name!r}, {hint}"
        case "missing" | "missing_argument":
            return f"missing {name}"
        case "value_error":
            reason = message.removeprefix("Value error, ")
            of_one_field = name and not isinstance(value, Mapping | ArgsKwargs)
            return f"{name} is {value!r}; {reason}" if of_one_field else reason
        case _:
            return f"{name} is {value!r}; {message.replace('Input should', 'it should')}"


def _names(kind: type[Any], before: str = "") -> Iterator[str]:
    """The settings' names, those of a part as `part.name`."""
    for item in fields(kind):
        if is_dataclass(item.type):
            yield from _names(cast("type[Any]", item.type), f"{before}{item.name}.")
        else:
            yield before + item.name
