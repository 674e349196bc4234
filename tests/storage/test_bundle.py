"""Bundle: comes back as it was saved, and is refused once anything in it differs."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, Backbone, ModelSettings, Quantization
from lesioncam.storage.bundle import (
    Bundle,
    bundle_exists,
    load_bundle,
    read_bundle,
    save_bundle,
)
from lesioncam.storage.uris import open_store
from lesioncam.vision.network import build_network
from tests.storage.conftest import refused

CARD = "# A card\n\nWith *Markdown* and an é.\n"
FILES = ("bundle.json", "stage1.safetensors", "stage2.safetensors", "README.md")
Content = dict[str, Any]


@pytest.fixture(autouse=True)
def smallest_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred weights instead of tens of thousands."""
    smaller = {**BACKBONES, "tiny": Backbone((4, "M", 4), 96)}
    for module in ("lesioncam.vision.network", "lesioncam.storage.bundle"):
        monkeypatch.setattr(f"{module}.BACKBONES", smaller)


@pytest.fixture
def bundle(model_settings: ModelSettings) -> Bundle:
    torch.manual_seed(0)
    stage1, stage2 = (build_network(model_settings).state_dict() for _ in range(2))
    facts = {"images": 2000, "seed": 0, "weights": None}
    metrics = {"final": {"mean": {"auc": 0.857, "low": None}}}
    return Bundle(model_settings, stage1, stage2, training=facts, metrics=metrics)


def digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(rendered(content)).hexdigest()


def rendered(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def rewrite(location: str, change: Callable[[Content], None]) -> None:
    """Change `bundle.json` as someone would who also fixes its digest."""
    store = open_store(location)
    content = json.loads(store.read("bundle.json"))
    del content["digest"]
    change(content)
    content["digest"] = digest_of(content)
    store.write("bundle.json", rendered(content))


def put_in(location: str, name: str, data: bytes) -> None:
    """Replace a file and fix all digests."""
    open_store(location).write(name, data)
    rewrite(
        location, lambda content: content["files"].update({name: hashlib.sha256(data).hexdigest()})
    )


# Round trip


def test_comes_back_as_it_was_saved(location: str, bundle: Bundle) -> None:
    digest = save_bundle(bundle, location, CARD)
    loaded = load_bundle(location)
    assert loaded.settings == bundle.settings
    assert loaded.digest == digest
    assert loaded.training == bundle.training
    assert loaded.metrics == bundle.metrics
    for stage in ("stage1", "stage2"):
        saved, found = getattr(bundle, stage), getattr(loaded, stage)
        assert saved.keys() == found.keys()
        assert all(torch.equal(saved[name], found[name]) for name in saved)
        assert all(saved[name].dtype == found[name].dtype for name in saved)
    store = open_store(location)
    assert store.read("README.md").decode() == CARD
    assert {entry.uri.removeprefix(store.uri + "/") for entry in store.entries()} == set(FILES)


def test_what_int8_needs_comes_back_and_counts(tmp_path: Path, bundle: Bundle) -> None:
    ranges = Quantization((2.5,), (0.1 + 0.2,))
    digests = [
        save_bundle(replace(bundle, quantization=one), str(tmp_path / str(number)), CARD)
        for number, one in enumerate((None, ranges, Quantization((2.5,), (0.3,))))
    ]
    assert len(set(digests)) == 3
    assert load_bundle(str(tmp_path / "1")).quantization == ranges
    assert read_bundle(str(tmp_path / "1")).card == CARD
    assert load_bundle(str(tmp_path / "0")).quantization is None
    assert "quantization" not in (tmp_path / "0" / "bundle.json").read_text()


def test_the_digest_is_that_of_the_rest_of_the_file(tmp_path: Path, bundle: Bundle) -> None:
    digest = save_bundle(bundle, str(tmp_path), CARD)
    content = json.loads(open_store(str(tmp_path)).read("bundle.json"))
    assert content.pop("digest") == digest == digest_of(content)


def test_the_same_content_has_the_same_digest(tmp_path: Path, bundle: Bundle) -> None:
    digest = save_bundle(bundle, f"{tmp_path}/one", CARD)
    turned = replace(
        bundle, stage1=dict(reversed(list(bundle.stage1.items()))), digest="an older one"
    )
    assert save_bundle(turned, f"{tmp_path}/other", CARD) == digest
    assert save_bundle(load_bundle(f"{tmp_path}/one"), f"{tmp_path}/third", CARD) == digest


def test_saving_again_replaces(tmp_path: Path, bundle: Bundle) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    digest = save_bundle(replace(bundle, metrics={"new": 1}), str(tmp_path), CARD)
    assert load_bundle(str(tmp_path)).digest == digest
    assert load_bundle(str(tmp_path)).metrics == {"new": 1}


def test_other_content_has_another_digest(tmp_path: Path, bundle: Bundle) -> None:
    changed = {name: tensor.clone() for name, tensor in bundle.stage2.items()}
    changed["linear.bias"][0] += 1e-6
    others = [
        bundle,
        replace(bundle, stage2=changed),
        replace(bundle, stage1=bundle.stage2, stage2=bundle.stage1),
        replace(bundle, settings=replace(bundle.settings, stage2_weight=0.25)),
        replace(bundle, settings=replace(bundle.settings, classes=("a", "b", "c"))),
        replace(bundle, training={"images": 1999}),
        replace(bundle, metrics={}),
    ]
    digests = [save_bundle(other, str(tmp_path / str(i)), CARD) for i, other in enumerate(others)]
    digests.append(save_bundle(bundle, str(tmp_path / "card"), CARD + " "))
    assert len(set(digests)) == len(digests)


# Whole or not at all


def test_exists_only_once_bundle_json_is_there(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(open_store(str(tmp_path)))
    write = kind.write
    for allowed in range(4):
        remaining = iter(range(allowed))

        def until_killed(self: Any, name: str, data: bytes, remaining: Any = remaining) -> None:
            if next(remaining, None) is None:
                raise KeyboardInterrupt
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "write", until_killed)
            with pytest.raises(KeyboardInterrupt):
                save_bundle(bundle, str(tmp_path), CARD)
        assert len(list(open_store(str(tmp_path)).entries())) == allowed
        assert not bundle_exists(str(tmp_path))
        with refused("--bundle", "bundle.json", kind=InputError):
            load_bundle(str(tmp_path))
    save_bundle(bundle, str(tmp_path), CARD)
    assert bundle_exists(str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path: Path, bundle: Bundle, name: str) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    open_store(str(tmp_path)).delete(name)
    with refused("--bundle", f"{tmp_path}/{name}", "no such", kind=InputError):
        load_bundle(str(tmp_path))


def test_no_bundle_at_all_is_refused_by_flag(tmp_path: Path) -> None:
    assert not bundle_exists(str(tmp_path))
    with refused("--other", f"{tmp_path}/bundle.json", kind=InputError, without=("--bundle",)):
        load_bundle(str(tmp_path), "--other")


def test_a_server_that_is_away_is_one_line(unreachable: str) -> None:
    with refused(unreachable):
        load_bundle(unreachable)


# Changed


def test_every_byte_of_bundle_json_counts(tmp_path: Path, bundle: Bundle) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    path = tmp_path / "bundle.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for byte in {whole[position] ^ 1, whole[position] ^ 0x20} - {whole[position]}:
            path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
            with refused("--bundle", str(path), kind=InputError):
                load_bundle(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b" ",
        lambda data: data[:-1],
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: json.dumps(json.loads(data), indent=2, sort_keys=True).encode() + b"\n",
        lambda data: data.replace(b"{", b'{\n  "format": 1,', 1),
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"[]\n",
        lambda _: b"\xff\xfe",
        lambda _: b"[" * 100_000,
    ],
)
def test_other_renderings_of_bundle_json_are_refused(
    tmp_path: Path, bundle: Bundle, change: Callable[[bytes], bytes]
) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    path = tmp_path / "bundle.json"
    path.write_bytes(change(path.read_bytes()))
    with refused("--bundle", str(path), kind=InputError):
        load_bundle(str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_one_byte_changed_is_refused(tmp_path: Path, bundle: Bundle, name: str) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    path = tmp_path / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for data in (changed, whole[:-1], whole + b"\0", b""):
        path.write_bytes(data)
        with refused("--bundle", name, kind=InputError):
            load_bundle(str(tmp_path))


def test_exchanged_stages_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    store = open_store(str(tmp_path))
    store.write("stage1.safetensors", store.read("stage2.safetensors"))
    with refused("--bundle", "stage1.safetensors", "digest", kind=InputError):
        load_bundle(str(tmp_path))


# Rewritten with care


def test_a_careful_rewrite_is_read(tmp_path: Path, bundle: Bundle) -> None:
    """What the refusals below rest on: the rewriting itself is not what is refused."""
    save_bundle(bundle, str(tmp_path), CARD)
    rewrite(str(tmp_path), lambda content: content["training"].update({"more": 1}))
    put_in(str(tmp_path), "README.md", b"another card")
    assert load_bundle(str(tmp_path)).training["more"] == 1


def model(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["model"].update(changes)


def crop(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["model"]["crop"].update(changes)


def ranges(stage1: Any, **more: Any) -> Callable[[Content], None]:
    return lambda content: content.update(quantization={"stage1": stage1, "stage2": [1.0], **more})


# Values of settings are tested in tests/test_settings.py.
BAD: dict[str, tuple[Callable[[Content], None], str]] = {
    "format 4": (lambda content: content.update(format=4), "format 4"),
    "format text": (lambda content: content.update(format="2"), "format '2'"),
    "no format": (lambda content: content.pop("format"), "format None"),
    "unknown key": (lambda content: content.update(more=1), "'more'"),
    "no model": (lambda content: content.pop("model"), "missing model"),
    "model a list": (lambda content: content.update(model=[]), "model is []"),
    "files a list": (lambda content: content.update(files=[]), "files is []"),
    "a file missing": (lambda content: content["files"].pop("README.md"), "README.md"),
    "unknown model key": (model(more=1), "'model.more'"),
    "more classes than tensors": (model(classes=["a", "b", "c", "d"]), "stage1.safetensors"),
    "another backbone": (model(backbone="vgg11"), "stage1.safetensors"),
    "canvas too large": (model(canvas_size=193), "canvas_size is 193"),
    "mean not a number": (model(mean=[float("nan"), 0.5, 0.5]), "bundle.json"),
    "too many ranges": (ranges([1.0, 2.0]), "quantization.stage1 has 2 ranges, tiny needs 1"),
    "no range": (ranges([]), "quantization.stage1 has 0 ranges"),
    "range of nothing": (ranges([0.0]), "quantization.stage1.0 is 0.0"),
    "range not a number": (ranges([float("nan")]), "bundle.json"),
    "ranges a number": (ranges(1.0), "quantization.stage1 is 1.0"),
    "unknown range": (ranges([1.0], more=1), "'quantization.more'"),
    "unknown crop key": (crop(more=1), "'model.crop.more'"),
    "unknown map": (crop(map="unknown"), "model.crop.map is 'unknown'"),
}


@pytest.mark.parametrize(("change", "word"), BAD.values(), ids=BAD)
def test_bad_values_are_refused(
    tmp_path: Path, bundle: Bundle, change: Callable[[Content], None], word: str
) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    rewrite(str(tmp_path), change)
    with refused("--bundle", str(tmp_path), word, kind=InputError):
        load_bundle(str(tmp_path))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        state = load(data)
        change(state)
        return save(state)

    return changed


WRONG_TENSORS: dict[str, Callable[[bytes], bytes]] = {
    "shape": tensors(lambda state: state.update({"linear.bias": torch.zeros(4)})),
    "order of axes": tensors(lambda state: state.update({"linear.weight": torch.zeros(4, 3)})),
    "one missing": tensors(lambda state: state.pop("linear.bias")),
    "one too many": tensors(lambda state: state.update({"more": torch.zeros(1)})),
    "cut short": lambda data: data[:-4],
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("change", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_wrong_tensors_are_refused(
    tmp_path: Path, bundle: Bundle, change: Callable[[bytes], bytes]
) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    name = "stage2.safetensors"
    put_in(str(tmp_path), name, change((tmp_path / name).read_bytes()))
    with refused("--bundle", name, kind=InputError):
        load_bundle(str(tmp_path))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_bytes, (self.path, b"ran")


@pytest.mark.parametrize("torch_file", [False, True])
def test_a_pickle_is_refused_and_does_not_run(
    tmp_path: Path, bundle: Bundle, torch_file: bool
) -> None:
    location = str(tmp_path / "bundle")
    save_bundle(bundle, location, CARD)
    sprung = tmp_path / "sprung"
    if torch_file:
        torch.save({"linear.bias": Trap(sprung)}, tmp_path / "trap.pt")
        data = (tmp_path / "trap.pt").read_bytes()
    else:
        data = pickle.dumps(Trap(sprung))
        pickle.loads(data)
        assert sprung.exists()  # the trap works
        sprung.unlink()
    put_in(location, "stage1.safetensors", data)
    with refused("--bundle", "stage1.safetensors", kind=InputError):
        load_bundle(location)
    assert not sprung.exists()
