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
from lesioncam.settings import BACKBONES, Backbone, ModelSettings
from lesioncam.storage.bundle import Bundle, bundle_exists, load_bundle, save_bundle
from lesioncam.storage.uris import open_store
from lesioncam.vision.network import build_network
from tests.storage.conftest import refused

CARD = "# A card\n\nWith *Markdown* and an é.\n"
FILES = ("bundle.json", "stage1.safetensors", "stage2.safetensors", "README.md")
Content = dict[str, Any]


@pytest.fixture(autouse=True)
def smallest_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred weights instead of tens of thousands."""
    monkeypatch.setattr(
        "lesioncam.vision.network.BACKBONES", {**BACKBONES, "tiny": Backbone((4, "M", 4), 96)}
    )


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


def rewrite(place: str, change: Callable[[Content], None]) -> None:
    """Change `bundle.json` as someone would who also mends its digest."""
    store = open_store(place)
    content = json.loads(store.read("bundle.json"))
    del content["digest"]
    change(content)
    content["digest"] = digest_of(content)
    store.write("bundle.json", rendered(content))


def put_in(place: str, name: str, data: bytes) -> None:
    """Replace a file and mend all digests."""
    open_store(place).write(name, data)
    rewrite(
        place, lambda content: content["files"].update({name: hashlib.sha256(data).hexdigest()})
    )


# Round trip


def test_comes_back_as_it_was_saved(place: str, bundle: Bundle) -> None:
    digest = save_bundle(bundle, place, CARD)
    loaded = load_bundle(place)
    assert loaded.settings == bundle.settings
    assert loaded.digest == digest
    assert loaded.training == bundle.training
    assert loaded.metrics == bundle.metrics
    for stage in ("stage1", "stage2"):
        saved, found = getattr(bundle, stage), getattr(loaded, stage)
        assert saved.keys() == found.keys()
        assert all(torch.equal(saved[name], found[name]) for name in saved)
        assert all(saved[name].dtype == found[name].dtype for name in saved)
    assert open_store(place).read("README.md").decode() == CARD


def test_holds_four_files(place: str, bundle: Bundle) -> None:
    save_bundle(bundle, place, CARD)
    store = open_store(place)
    assert {entry.uri.removeprefix(store.uri + "/") for entry in store.entries()} == set(FILES)


def test_the_stages_are_not_mixed_up(place: str, bundle: Bundle) -> None:
    save_bundle(bundle, place, CARD)
    loaded = load_bundle(place)
    assert torch.equal(loaded.stage1["linear.weight"], bundle.stage1["linear.weight"])
    assert torch.equal(loaded.stage2["linear.weight"], bundle.stage2["linear.weight"])
    assert not torch.equal(loaded.stage1["linear.weight"], loaded.stage2["linear.weight"])


def test_the_loaded_network_gives_the_same_logits(place: str, bundle: Bundle) -> None:
    save_bundle(bundle, place, CARD)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = build_network(bundle.settings, bundle.stage1).eval()(images)[0]
    loaded = load_bundle(place)
    assert torch.equal(build_network(loaded.settings, loaded.stage1).eval()(images)[0], before)


def test_the_digest_is_that_of_the_rest_of_the_file(place: str, bundle: Bundle) -> None:
    digest = save_bundle(bundle, place, CARD)
    content = json.loads(open_store(place).read("bundle.json"))
    assert content.pop("digest") == digest == digest_of(content)


def test_the_same_content_has_the_same_digest(place: str, bundle: Bundle) -> None:
    digest = save_bundle(bundle, place + "/one", CARD)
    turned = replace(
        bundle, stage1=dict(reversed(list(bundle.stage1.items()))), digest="an older one"
    )
    assert save_bundle(turned, place + "/other", CARD) == digest
    assert save_bundle(load_bundle(place + "/one"), place + "/third", CARD) == digest


def test_saving_again_replaces(place: str, bundle: Bundle) -> None:
    save_bundle(bundle, place, CARD)
    digest = save_bundle(replace(bundle, metrics={"new": 1}), place, CARD)
    assert load_bundle(place).digest == digest
    assert load_bundle(place).metrics == {"new": 1}


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
    place: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(open_store(place))
    write = kind.write
    for allowed in range(4):
        left = iter(range(allowed))

        def until_killed(self: Any, name: str, data: bytes, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "write", until_killed)
            with pytest.raises(KeyboardInterrupt):
                save_bundle(bundle, place, CARD)
        assert len(list(open_store(place).entries())) == allowed
        assert not bundle_exists(place)
        with refused("--bundle", "bundle.json", kind=InputError):
            load_bundle(place)
    save_bundle(bundle, place, CARD)
    assert bundle_exists(place)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(place: str, bundle: Bundle, name: str) -> None:
    save_bundle(bundle, place, CARD)
    open_store(place).delete(name)
    with refused("--bundle", f"{place}/{name}", "no such", kind=InputError):
        load_bundle(place)


def test_no_bundle_at_all_is_refused_by_flag(place: str) -> None:
    assert not bundle_exists(place)
    with refused("--other", f"{place}/bundle.json", kind=InputError, without=("--bundle",)):
        load_bundle(place, "--other")


def test_a_server_that_is_away_is_one_line(unreachable: str) -> None:
    with refused(unreachable):
        load_bundle(unreachable)


# Changed


def test_every_byte_of_bundle_json_counts(tmp_path: Path, bundle: Bundle) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    path = tmp_path / "bundle.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for byte in {whole[position] ^ 1, whole[position] ^ 0x20, ord(" ")} - {whole[position]}:
            path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
            with refused("--bundle", str(path), kind=InputError):
                load_bundle(str(tmp_path))
    path.write_bytes(whole)
    load_bundle(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b" ",
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: b" " + data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b'": ', b'":  ', 1),
        lambda data: json.dumps(json.loads(data)).encode(),
        lambda data: json.dumps(json.loads(data), indent=2, sort_keys=True).encode() + b"\n",
        lambda data: data.replace(b"{", b'{\n  "format": 1,', 1),
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"null\n",
        lambda _: b"[]\n",
        lambda _: b'"bundle"\n',
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
def test_one_byte_changed_is_refused(place: str, bundle: Bundle, name: str) -> None:
    save_bundle(bundle, place, CARD)
    store = open_store(place)
    whole = store.read(name)
    for position in (0, 3, 8, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        byte = bytes([whole[position] ^ 1])
        store.write(name, whole[:position] + byte + whole[position + 1 :])
        with refused("--bundle", name, kind=InputError):
            load_bundle(place)
    for data in (whole[:-1], whole + b"\0", b""):
        store.write(name, data)
        with refused("--bundle", name, kind=InputError):
            load_bundle(place)
    store.write(name, whole)
    load_bundle(place)


def test_exchanged_stages_are_refused(place: str, bundle: Bundle) -> None:
    save_bundle(bundle, place, CARD)
    store = open_store(place)
    store.write("stage1.safetensors", store.read("stage2.safetensors"))
    with refused("--bundle", "stage1.safetensors", "digest", kind=InputError):
        load_bundle(place)


# Rewritten with care


def test_a_careful_rewrite_is_read(place: str, bundle: Bundle) -> None:
    """What the refusals below rest on: the rewriting itself is not what is refused."""
    save_bundle(bundle, place, CARD)
    rewrite(place, lambda content: content["training"].update({"more": 1}))
    put_in(place, "README.md", b"another card")
    assert load_bundle(place).training["more"] == 1


def model(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["model"].update(changes)


def crop(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["model"]["crop"].update(changes)


BAD: dict[str, tuple[Callable[[Content], None], str]] = {
    "format 4": (lambda content: content.update(format=4), "format 4"),
    "format text": (lambda content: content.update(format="2"), "format '2'"),
    "format true": (lambda content: content.update(format=True), "format"),
    "no format": (lambda content: content.pop("format"), "format None"),
    "unknown key": (lambda content: content.update(more=1), "'more'"),
    "no model": (lambda content: content.pop("model"), "model"),
    "no training": (lambda content: content.pop("training"), "training"),
    "no files": (lambda content: content.pop("files"), "files"),
    "model a list": (lambda content: content.update(model=[]), "model"),
    "files a list": (lambda content: content.update(files=[]), "files"),
    "a file left out": (lambda content: content["files"].pop("README.md"), "README.md"),
    "unknown model key": (model(more=1), "'more'"),
    "no classes": (lambda content: content["model"].pop("classes"), "classes"),
    "one class": (model(classes=["melanoma"]), "classes"),
    "equal classes": (model(classes=["a", "b", "a"]), "classes"),
    "bad class name": (model(classes=["a b", "b", "c"]), "'a b'"),
    "class mean": (model(classes=["mean", "b", "c"]), "'mean'"),
    "classes of numbers": (model(classes=[1, 2, 3]), "classes"),
    "classes text": (model(classes="abc"), "classes"),
    "more classes than tensors": (model(classes=["a", "b", "c", "d"]), "stage1.safetensors"),
    "unknown backbone": (model(backbone="resnet"), "'resnet'"),
    "another backbone": (model(backbone="vgg11"), "stage1.safetensors"),
    "input side text": (model(input_size="96"), "input_size"),
    "input side with a fraction": (model(input_size=96.5), "input_size"),
    "no input side": (model(input_size=0, canvas_size=0), "input_size"),
    "canvas too small": (model(canvas_size=95), "canvas_size"),
    "canvas too large": (model(canvas_size=193), "canvas_size"),
    "canvas null": (model(canvas_size=None), "canvas_size"),
    "mean of two": (model(mean=[0.5, 0.5]), "mean"),
    "mean of text": (model(mean=["0.5", "0.5", "0.5"]), "mean"),
    "mean not a number": (model(mean=[float("nan"), 0.5, 0.5]), "bundle.json"),
    "std of four": (model(std=[0.5] * 4), "std"),
    "std of zero": (model(std=[0.5, 0.0, 0.5]), "std"),
    "weight above 1": (model(stage2_weight=1.5), "stage2_weight"),
    "weight below 0": (model(stage2_weight=-0.1), "stage2_weight"),
    "weight true": (model(stage2_weight=True), "stage2_weight"),
    "crop null": (model(crop=None), "crop"),
    "unknown crop key": (crop(more=1), "'more'"),
    "unknown map": (crop(map="guess"), "crop.map"),
    "threshold 0": (crop(threshold=0), "crop.threshold"),
    "padding below 0": (crop(padding=-0.1), "crop.padding"),
    "smallest above 1": (crop(smallest=1.1), "crop.smallest"),
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
    "one left out": tensors(lambda state: state.pop("linear.bias")),
    "one too many": tensors(lambda state: state.update({"more": torch.zeros(1)})),
    "another name": tensors(lambda state: state.update({"head.bias": state.pop("linear.bias")})),
    "none": lambda _: save({}),
    "cut short": lambda data: data[:-4],
    "longer": lambda data: data + b"\0\0\0\0",
    "no header": lambda _: b"\0" * 8,
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "empty": lambda _: b"",
    "text": lambda _: b"not safetensors at all",
}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("change", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_wrong_tensors_are_refused(
    tmp_path: Path, bundle: Bundle, stage: str, change: Callable[[bytes], bytes]
) -> None:
    save_bundle(bundle, str(tmp_path), CARD)
    name = f"{stage}.safetensors"
    put_in(str(tmp_path), name, change((tmp_path / name).read_bytes()))
    with refused("--bundle", name, kind=InputError):
        load_bundle(str(tmp_path))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_bytes, (self.path, b"ran")


@pytest.mark.parametrize("name", ["stage1.safetensors", "stage2.safetensors"])
@pytest.mark.parametrize("torch_file", [False, True])
def test_a_pickle_is_refused_and_does_not_run(
    place: str, tmp_path: Path, bundle: Bundle, name: str, torch_file: bool
) -> None:
    save_bundle(bundle, place, CARD)
    sprung = tmp_path / "sprung"
    if torch_file:
        torch.save({"linear.bias": Trap(sprung)}, tmp_path / "trap.pt")
        data = (tmp_path / "trap.pt").read_bytes()
    else:
        data = pickle.dumps(Trap(sprung))
        pickle.loads(data)
        assert sprung.exists()  # the trap works
        sprung.unlink()
    put_in(place, name, data)
    with refused("--bundle", name, kind=InputError):
        load_bundle(place)
    assert not sprung.exists()
