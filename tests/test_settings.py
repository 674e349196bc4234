"""Settings: what is refused, with which words, and what is taken as it is."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, CropRule, TrainSettings, parse

WHERE = "config.toml"


@dataclass(frozen=True)
class Model:
    """Every shape of field that a settings file can have."""

    names: tuple[str, ...]
    scales: tuple[float, ...]
    count: int
    crop: CropRule
    facts: dict[str, Any]
    anything: Any = None
    note: str | None = "none"


MODEL: dict[str, Any] = {
    "names": ["a", "b"],
    "scales": [1, 0.5],
    "count": 3,
    "crop": {"padding": 0.2},
    "facts": {"epochs": 4},
}


def refusal(mapping: dict[str, Any], kind: type = TrainSettings) -> str:
    with pytest.raises(InputError) as caught:
        parse(kind, mapping, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert "\n" not in message
    return message


def train(**values: Any) -> TrainSettings:
    return parse(TrainSettings, values, WHERE)


def test_defaults_are_valid_and_complete() -> None:
    settings = train()
    assert settings == TrainSettings()
    assert settings.backbone in BACKBONES
    assert settings.crop == CropRule()
    assert dataclasses.replace(settings) == settings  # checks every range once more


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CropRule().map = "predicted"  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    for kind in (TrainSettings, CropRule):
        for item in dataclasses.fields(kind):
            assert f"        {item.name}: " in (kind.__doc__ or ""), item.name


def test_default_settings_come_back_from_a_mapping() -> None:
    changed = TrainSettings(seed=5, weights="w.pth", zoom=0.3, crop=CropRule(padding=0.3))
    assert train(**dataclasses.asdict(changed)) == changed


def test_unknown_key_names_key_and_file_and_what_is_known() -> None:
    message = refusal({"epochs": 3, "seed": 1})
    assert "unknown key 'epochs'" in message
    assert "'seed'" not in message
    for item in dataclasses.fields(TrainSettings):
        assert item.name in message


def test_every_unknown_key_is_named() -> None:
    assert "unknown key 'b_x', 'z_x'" in refusal({"z_x": 1, "seed": 1, "b_x": 2})


def test_unknown_key_of_crop_names_the_table() -> None:
    message = refusal({"crop": {"treshold": 0.3}})
    assert "crop: unknown key 'treshold'" in message
    assert "threshold" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("stage1_epochs", 2.0, "int"),
        ("stage1_epochs", "2", "int"),
        ("stage1_epochs", True, "int"),
        ("stage1_epochs", None, "int"),
        ("seed", False, "int"),
        ("learning_rate", "0.1", "float"),
        ("learning_rate", True, "float"),
        ("learning_rate", None, "float"),
        ("backbone", 16, "str"),
        ("backbone", None, "str"),
        ("weights", 1, "str"),
        ("weights", ["a"], "str"),
        ("crop", 0.2, "CropRule"),
        ("crop", ["a"], "CropRule"),
    ],
)
def test_wrong_type_names_key_file_and_both_types(key: str, value: object, expected: str) -> None:
    assert refusal({key: value}) == f"{WHERE}: {key}: expected {expected}, got {value!r}"


def test_wrong_type_in_crop_names_the_table() -> None:
    message = refusal({"crop": {"padding": "wide"}})
    assert message == f"{WHERE}: crop: padding: expected float, got 'wide'"


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("stage1_epochs", [1, 100], [0, -1]),
        ("stage2_epochs", [1], [0]),
        ("batch_size", [1], [0]),
        ("input_size", [32, 224, None], [0, 16, 100]),
        ("learning_rate", [1e-6, 1.0], [0.0, -0.1, 1.01]),
        ("stage2_learning_rate", [1e-6, 1.0], [0.0, -0.1, 1.01]),
        ("weight_decay", [0.0, 0.5], [-0.1, 1.0]),
        ("label_smoothing", [0.0, 0.99], [-0.1, 1.0]),
        ("dropout", [0.0, 0.99], [-0.1, 1.0]),
        ("zoom", [0.0, 0.99], [-0.1, 1.0]),
        ("shift", [0.0, 0.99], [-0.1, 1.0]),
        ("brightness", [0.0, 0.99], [-0.1, 1.0]),
        ("balance", [0.0, 1.0], [-0.1, 1.1]),
        ("stage2_weight", [0.0, 1.0], [-0.1, 1.1]),
        ("val_fraction", [0.01, 0.99], [0.0, 1.0, -0.5]),
        ("canvas_scale", [2.0], [0.99, 2.01]),
        ("rotate", [0.0, 180.0], [-1.0, 181.0]),
        ("frozen_blocks", [0, 5], [-1, 6]),
        ("seed", [0, 2**40], [-1]),
    ],
)
def test_ranges(key: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(train(**{key: value}), key) == value
    for value in bad:
        assert f"{WHERE}: {key} is {value!r}; expected " in refusal({key: value})
        with pytest.raises(InputError, match=f"^{key} is "):
            TrainSettings(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("map", ["predicted", "maximum"], ["", "Maximum", "mean"]),
        ("threshold", [0.01, 0.99], [0.0, 1.0, -0.2]),
        ("padding", [0.0, 1.0], [-0.01, 1.01]),
        ("smallest", [0.25, 1.0], [0.24, 1.01, 0.0]),
        ("context", [0.0, 0.5], [-0.01, 0.51]),
    ],
)
def test_ranges_of_crop(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(train(crop={key: value}).crop, key) == value
    for value in bad:
        assert f"crop.{key} is {value!r}; expected " in refusal({"crop": {key: value}})
        with pytest.raises(InputError, match=rf"^crop\.{key} is "):
            CropRule(**{key: value})


def test_a_crop_has_at_least_half_the_inputs_pixels_each_way() -> None:
    for crop in ({"smallest": 0.5, "context": 0.0}, {"smallest": 0.4, "context": 0.05}):
        assert train(canvas_scale=1.0, crop=crop).crop.smallest_crop == 0.5
    assert "crop.smallest is 0.4; expected at least 0.5 / canvas_scale - 2 x crop.context" in (
        refusal({"canvas_scale": 1.0, "crop": {"smallest": 0.4, "context": 0.04}})
    )


def test_stage_2_starts_from_the_loaded_weights_or_from_stage_1() -> None:
    for start in ("weights", "stage1"):
        assert train(stage2_start=start).stage2_start == start
    assert "stage2_start is 'stage2'; expected weights or stage1" in refusal(
        {"stage2_start": "stage2"}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["learning_rate", "zoom", "balance", "val_fraction", "rotate"])
def test_number_that_is_none_is_refused(key: str, value: float) -> None:
    assert f"{key} is {value!r}" in refusal({key: value})


def test_whole_number_is_taken_for_a_fraction() -> None:
    settings = train(learning_rate=1, rotate=90, crop={"padding": 0})
    for value in (settings.learning_rate, settings.rotate, settings.crop.padding):
        assert type(value) is float
    assert (settings.learning_rate, settings.rotate, settings.crop.padding) == (1.0, 90.0, 0.0)


def test_crop_table_keeps_defaults_of_what_it_leaves_out() -> None:
    crop = train(crop={"threshold": 0.4, "map": "predicted"}).crop
    assert crop == CropRule("predicted", 0.4, CropRule().padding, CropRule().smallest)


@pytest.mark.parametrize("weights", [None, "/data/vgg16.safetensors"])
def test_weights_may_be_null_or_text(weights: str | None) -> None:
    assert train(weights=weights).weights == weights


def test_lists_become_tuples_of_the_fields_type() -> None:
    model = parse(Model, MODEL, WHERE)
    assert model.names == ("a", "b")
    assert model.scales == (1.0, 0.5)
    assert [type(value) for value in model.scales] == [float, float]
    assert model.crop == CropRule(padding=0.2)
    assert model.facts == {"epochs": 4}
    assert (model.anything, model.note) == (None, "none")


def test_field_of_any_type_is_left_alone() -> None:
    for value in (True, [1, 2], {"a": None}):
        assert parse(Model, MODEL | {"anything": value}, WHERE).anything is value


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": "ab"}, "names: expected tuple, got 'ab'"),
        ({"names": ["a", 1]}, "names: expected str, got 1"),
        ({"scales": [0.1, True]}, "scales: expected float, got True"),
        ({"facts": [1]}, "facts: expected dict, got [1]"),
        ({"note": 1}, "note: expected str, got 1"),
    ],
)
def test_wrong_item_names_its_field(changed: dict[str, Any], message: str) -> None:
    assert refusal(MODEL | changed, Model) == f"{WHERE}: {message}"


@pytest.mark.parametrize("left_out", [["names"], ["count", "crop"], ["names", "facts"]])
def test_missing_keys_are_all_named(left_out: list[str]) -> None:
    mapping = {name: value for name, value in MODEL.items() if name not in left_out}
    assert refusal(mapping, Model) == f"{WHERE}: missing {', '.join(left_out)}"
