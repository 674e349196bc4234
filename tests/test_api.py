import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

import lesioncam
from lesioncam import api
from lesioncam.errors import InputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "limit is 0; it should be at least 1"),
        ({"precision": "float16"}, "precision is 'float16'; it should be one of auto, float32"),
        ({"gpus": -1}, "gpus is -1; it should be at least 0"),
        ({"keep_columns": "site"}, "keep_columns is 'site'; it should be a list of names"),
        ({"max_failed_fraction": 5}, "max_failed_fraction is 5; it should be from 0 to 1"),
    ],
)
def test_score_refuses_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lesioncam.score("images", "scores", bundle="model", **values)


def test_other_verbs_refuse_bad_values() -> None:
    with pytest.raises(InputError, match="workers is 0; it should be at least 1"):
        lesioncam.train("images", "labels.csv", "model", workers=0)
    with pytest.raises(InputError, match="overlays is -1; it should be at least 0"):
        lesioncam.evaluate("scores", "labels.csv", overlays=-1)
    with pytest.raises(InputError, match=r"^gallery is 1001; it should be from 0 to 1000"):
        lesioncam.report("scores", gallery=1001)


@pytest.mark.parametrize(
    "verb", ["score", "train", "evaluate", "report", "calibrate", "quantize", "download"]
)
def test_an_empty_value_of_any_keyword_is_refused(verb: str) -> None:
    function = getattr(lesioncam, verb)
    parameters = inspect.signature(function).parameters.values()
    required = {p.name: "given" for p in parameters if p.default is inspect.Parameter.empty}
    texts = [p.name for p in parameters if "Uri" in str(p.annotation) or "str" in str(p.annotation)]
    assert required.keys() <= set(texts)
    for name in texts:
        with pytest.raises(InputError, match=f"^{name}: the value is empty"):
            function(**required | {name: ""})


def test_a_uri_that_pathlib_has_changed_is_refused() -> None:
    message = "^images: s3:/bucket/images has one slash after s3: where a URI has two"
    with pytest.raises(InputError, match=message):
        lesioncam.score(Path("s3://bucket/images"), "scores", bundle="model")
    with pytest.raises(InputError, match=r"^bundle: s3:/bucket/model has one slash"):
        lesioncam.load(Path("s3://bucket/model"))


def test_errors_name_keywords_and_on_the_command_line_flags(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^settings: .*gone\.toml: No such file") as caught:
        lesioncam.train("images", "labels.csv", "model", settings=tmp_path / "gone.toml")
    assert caught.value.command_line_message.startswith("--config: ")
    error = InputError("--val-labels: no, see --rest-class")
    error.name_keywords()
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == "val_labels: no, see rest_class"
    assert copied.command_line_message == "--val-labels: no, see --rest-class"


def test_a_verb_keeps_its_name_and_signature() -> None:
    assert api.score.__name__ == "score"
    assert list(inspect.signature(api.score).parameters)[:2] == ["images", "output"]
