"""Settings: what is accepted, what is refused, and with which message."""

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from lesioncam.errors import InputError
from lesioncam.settings import (
    BACKBONES,
    CropRule,
    ModelSettings,
    TrainSettings,
    explain,
    flat,
    parse,
)

WHERE = "config.toml"

MODEL: dict[str, Any] = {
    "classes": ["a", "b"],
    "backbone": "tiny",
    "input_size": 96,
    "canvas_size": 192,
    "mean": [0.5, 0.5, 0],
    "std": [1, 1, 0.5],
    "stage2_weight": 0.5,
    "crop": {"padding": 0.2},
}


def refusal(content: dict[str, Any], kind: type = TrainSettings) -> str:
    """What is wrong with settings of this content, without the file's name."""
    with pytest.raises(InputError) as caught:
        parse(kind, content, WHERE)
    where, _, message = str(caught.value).partition(": ")
    assert where == WHERE
    assert "\n" not in message
    return message


def train(**values: Any) -> TrainSettings:
    return parse(TrainSettings, values, WHERE)


def test_defaults_are_valid_and_complete() -> None:
    settings = train()
    assert settings == TrainSettings()
    assert settings.backbone in BACKBONES
    assert settings.crop == CropRule()


POINT: dict[str, Any] = {
    "name": "b",
    "threshold": 0.2,
    "criterion": "sensitivity",
    "wanted": 0.95,
    "sensitivity": 0.96,
    "specificity": 0.5,
    "positives": 50,
    "negatives": 250,
    "source": "a test",
}
CALIBRATION: dict[str, Any] = {
    "temperature": 1.2,
    "biases": [0.1, -0.1],
    "images": 300,
    "source": "a test",
}


def test_calibration_and_operating_points_are_of_the_classes() -> None:
    model = parse(ModelSettings, MODEL | {"calibration": CALIBRATION}, WHERE)
    assert model.thresholds == {}
    points = [POINT | {"name": "a", "threshold": 0.3}, POINT]
    model = parse(ModelSettings, MODEL | {"operating_points": points}, WHERE)
    assert model.thresholds == {"a": 0.3, "b": 0.2}
    for wrong in ([POINT, POINT], points[::-1], [POINT | {"name": "c"}]):
        message = refusal(MODEL | {"operating_points": wrong}, ModelSettings)
        assert "should be of different classes, in the order of a, b" in message
    message = refusal(MODEL | {"calibration": CALIBRATION | {"biases": [0.1]}}, ModelSettings)
    assert "calibration.biases has 1 values; it should have one for each of the 2" in message


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("kind", [TrainSettings, ModelSettings, CropRule])
def test_every_field_is_documented(kind: type[Any]) -> None:
    for item in dataclasses.fields(kind):
        assert f"        {item.name}: " in (kind.__doc__ or ""), item.name


def test_settings_survive_a_round_trip() -> None:
    changed = TrainSettings(seed=5, weights="w.pth", zoom=0.3, crop=CropRule(padding=0.3))
    assert train(**dataclasses.asdict(changed)) == changed


def test_flat_names_nested_settings_by_their_part() -> None:
    assert dict(flat({"seed": 1, "crop": {"padding": 0.1}})) == {"seed": 1, "crop.padding": 0.1}


def test_resolved_sets_the_backbones_input_size() -> None:
    assert TrainSettings(backbone="tiny").resolved().input_size == BACKBONES["tiny"].input_size
    assert TrainSettings(backbone="tiny", input_size=64).resolved().input_size == 64


# Messages


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"stage1_epoch": 3}, "unknown key 'stage1_epoch', did you mean 'stage1_epochs'?"),
        (
            {"crop": {"treshold": 0.3}},
            "unknown key 'crop.treshold', did you mean 'crop.threshold'?",
        ),
        ({"seed": "1"}, "seed is '1'; it should be a valid integer"),
        ({"crop": {"padding": "wide"}}, "crop.padding is 'wide'; it should be a valid number"),
        ({"backbone": "vgg19"}, "backbone is 'vgg19'; it should be one of vgg16, vgg11, tiny"),
        ({"crop": {"map": "mean"}}, "crop.map is 'mean'; it should be 'predicted' or 'maximum'"),
        ({"rotate": float("nan")}, "rotate is nan; it should be a finite number"),
        ({"input_size": 100}, "input_size is 100; it should be a multiple of 16"),
        (
            {"seed": -1, "zoom": 1},
            "zoom is 1; it should be less than 1; seed is -1; it should be greater than or equal "
            "to 0",
        ),
    ],
)
def test_messages_name_each_key_its_value_and_the_fix(
    content: dict[str, Any], expected: str
) -> None:
    assert refusal(content) == expected


def test_an_unknown_key_unlike_any_other_names_all_keys() -> None:
    message = refusal({"q": 3})
    assert message.startswith("unknown key 'q', known keys: backbone, ")
    for name, _ in flat(dataclasses.asdict(TrainSettings())):
        assert name in message


def test_missing_keys_are_all_named() -> None:
    content = {name: value for name, value in MODEL.items() if name not in ("classes", "std")}
    assert refusal(content, ModelSettings) == "missing classes; missing std"


def test_settings_made_in_code_are_checked_too() -> None:
    with pytest.raises(ValidationError) as caught:
        CropRule(threshold=2.0)
    assert explain(caught.value, CropRule) == "threshold is 2.0; it should be less than 1"
    with pytest.raises(ValueError, match="greater than 0"):
        dataclasses.replace(TrainSettings(), batch_size=0)


# Types and ranges


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage1_epochs", 2.0),
        ("stage1_epochs", True),
        ("stage1_epochs", None),
        ("learning_rate", "0.1"),
        ("learning_rate", True),
        ("backbone", 16),
        ("weights", ["a"]),
        ("crop", 0.2),
        ("test_time_rotation", 1),
    ],
)
def test_no_type_is_taken_for_another(key: str, value: object) -> None:
    assert refusal({key: value}).startswith(f"{key} is {value!r}; it should be ")


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("stage1_epochs", [1], [0]),
        ("batch_size", [1], [0]),
        ("input_size", [32, None], [16, 100]),
        ("learning_rate", [1e-6, 1.0], [0.0, 1.01]),
        ("weight_decay", [0.0, 0.99], [-0.1, 1.0]),
        ("balance", [0.0, 1.0], [-0.1, 1.1]),
        ("val_fraction", [0.01, 0.99], [0.0, 1.0]),
        ("canvas_scale", [1.0, 2.0], [0.99, 2.01]),
        ("rotate", [0.0, 180.0], [-1.0, 181.0]),
        ("frozen_blocks", [0, 5], [-1, 6]),
        ("stage2_start", ["weights", "stage1"], ["stage2"]),
        ("seed", [0, 2**40], [-1]),
    ],
)
def test_ranges(key: str, good: list[Any], bad: list[Any]) -> None:
    crop = {"smallest": 0.5}  # large enough for any canvas
    for value in good:
        assert getattr(train(**{key: value}, crop=crop), key) == value
    for value in bad:
        assert refusal({key: value}).startswith(f"{key} is {value!r}; ")


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("threshold", [0.01, 0.99], [0.0, 1.0]),
        ("padding", [0.0, 1.0], [-0.01, 1.01]),
        ("smallest", [0.25, 1.0], [0.24, 1.01]),
        ("context", [0.0, 0.5], [-0.01, 0.51]),
    ],
)
def test_ranges_of_crop(key: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(train(crop={key: value}).crop, key) == value
    for value in bad:
        assert refusal({"crop": {key: value}}).startswith(f"crop.{key} is {value!r}; ")


def test_a_crop_has_at_least_half_the_inputs_pixels_each_way() -> None:
    for crop in ({"smallest": 0.5, "context": 0.0}, {"smallest": 0.4, "context": 0.05}):
        assert train(canvas_scale=1.0, crop=crop).crop.smallest_crop == 0.5
    assert "crop.smallest is 0.4; it should be at least 0.5 / canvas_scale - 2 x crop.context" in (
        refusal({"canvas_scale": 1.0, "crop": {"smallest": 0.4, "context": 0.04}})
    )


@pytest.mark.parametrize("canvas_size", [95, 193])
def test_a_canvas_is_one_to_two_inputs_wide(canvas_size: int) -> None:
    message = refusal(MODEL | {"canvas_size": canvas_size}, ModelSettings)
    assert message.startswith(f"canvas_size is {canvas_size}; it should be one to two times")


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], ["a", "b c"]])
def test_class_names_are_checked(classes: list[str]) -> None:
    assert refusal(MODEL | {"classes": classes}, ModelSettings).startswith(f"classes is {classes}")


def test_lists_become_tuples_and_whole_numbers_fractions() -> None:
    model = parse(ModelSettings, MODEL, WHERE)
    assert model.classes == ("a", "b")
    assert model.mean == (0.5, 0.5, 0.0)
    assert {type(value) for value in (*model.mean, *model.std)} == {float}
    assert type(train(rotate=90).rotate) is float


def test_a_crop_section_keeps_defaults_of_what_it_leaves_out() -> None:
    crop = train(crop={"threshold": 0.4, "map": "predicted"}).crop
    assert crop == CropRule("predicted", 0.4)
