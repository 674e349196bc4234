"""Bundle: a trained model as a directory; loading is strict, checks digests and runs no code.

Checking a bundle needs no torch; loading its networks does.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic.dataclasses
from safetensors import SafetensorError, deserialize

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, STRICT, ModelSettings, Quantization, parse
from lesioncam.storage.store import Store, StoreError, read_if_there, refusal
from lesioncam.storage.uris import open_store

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 6
BUNDLE_FILE = "bundle.json"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
EVENTS_FOLDER = "tensorboard"
STAGES = ("stage1", "stage2")


@dataclass(frozen=True)
class Bundle:
    """A trained model.

    Attributes:
        settings: what inference needs beside the weights.
        stage1: the tensors of stage 1 by name.
        stage2: the tensors of stage 2 by name.
        digest: of the whole bundle, `model` in the scores. Empty until it is saved.
        training: facts of the training run, for people.
        metrics: its results, for people.
        quantization: what int8 needs beside the weights, or None.
    """

    settings: ModelSettings
    stage1: "Mapping[str, Tensor]"
    stage2: "Mapping[str, Tensor]"
    digest: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None


@dataclass(frozen=True)
class BundleFiles:
    """The files of a bundle, read and checked; its networks are not loaded yet.

    Attributes:
        settings: what inference needs beside the weights.
        digest: of the whole bundle, `model` in the scores.
        weights: each stage's tensors, as a safetensors file holds them.
        card: the model card, Markdown.
    """

    settings: ModelSettings
    digest: str
    weights: Mapping[str, bytes]
    card: str
    _parsed: "_BundleFile"

    @property
    def quantization(self) -> Quantization | None:
        """What int8 needs beside the weights, or None."""
        return self._parsed.quantization

    def load(self) -> Bundle:
        """The bundle with its networks' weights."""
        stage1, stage2 = (load_weights(self.weights[stage]) for stage in STAGES)
        parsed = self._parsed
        return Bundle(
            self.settings,
            stage1,
            stage2,
            self.digest,
            parsed.training,
            parsed.metrics,
            parsed.quantization,
        )


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class _BundleFile:
    """The content of `bundle.json`."""

    format: int
    model: ModelSettings
    training: dict[str, Any]
    metrics: dict[str, Any]
    files: dict[str, str]
    digest: str
    quantization: Quantization | None = None


def save_bundle(bundle: Bundle, uri: str, card: str) -> str:
    """Write a bundle; `bundle.json` last, so that a bundle that has it is complete.

    Args:
        bundle: its `digest` is not used.
        uri: a directory or s3:// prefix.
        card: the model card, Markdown.

    Returns:
        The bundle's digest.
    """
    from safetensors.torch import save  # noqa: PLC0415

    store = open_store(uri)
    files = {
        "stage1.safetensors": save(dict(bundle.stage1)),
        "stage2.safetensors": save(dict(bundle.stage2)),
        CARD_FILE: card.encode(),
    }
    for name, data in files.items():
        store.write(name, data)
    content: dict[str, Any] = {
        "format": FORMAT,
        "model": asdict(bundle.settings),
        **({"quantization": asdict(bundle.quantization)} if bundle.quantization else {}),
        "training": dict(bundle.training),
        "metrics": dict(bundle.metrics),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    content["digest"] = _digest(content)
    store.write(BUNDLE_FILE, _render(content))
    return str(content["digest"])


def copy_curves(source: Store, target: Store) -> None:
    """Copy every epoch's metrics, and their curves, of a bundle that has them."""
    for name in (METRICS_FILE, CURVES_FILE):
        if (data := read_if_there(source, name)) is not None:
            target.write(name, data)


def bundle_exists(uri: str) -> bool:
    """Whether there is a complete bundle."""
    return open_store(uri).exists(BUNDLE_FILE)


def load_bundle(uri: str, flag: str = "--bundle") -> Bundle:
    """Read, check and load a bundle; raises as `read_bundle` and `BundleFiles.load` do."""
    return read_bundle(uri, flag).load()


def read_bundle(uri: str, flag: str = "--bundle") -> BundleFiles:
    """Read and check a bundle's files.

    Raises:
        InputError: a file is missing, was changed after it was written, or has content that this
            version does not know.
        RunFailedError: its store cannot be reached.
    """
    store = open_store(uri)
    data = _read(store, BUNDLE_FILE, flag)
    where = f"{flag}: {uri}/{BUNDLE_FILE}"
    try:
        content = json.loads(data)
        unchanged = data == _render(content) and content.pop("digest") == _digest(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{where} is damaged; copy the bundle again or train a new one") from error
    if not unchanged:
        raise InputError(f"{where} was changed; copy the bundle again or train a new one")
    if content.get("format") != FORMAT:
        raise InputError(
            f"{where} has format {content.get('format')!r}, this version reads {FORMAT}; train a "
            f"new one"
        )
    parsed = parse(_BundleFile, json.loads(data), where)
    _check_ranges(parsed, where)
    weights = {
        stage: _check_digest(store, f"{stage}.safetensors", parsed, flag) for stage in STAGES
    }
    card = _check_digest(store, CARD_FILE, parsed, flag).decode()
    for stage, tensors in weights.items():
        _check_tensors(tensors, parsed.model, f"{flag}: {store.uri}/{stage}.safetensors")
    return BundleFiles(parsed.model, parsed.digest, weights, card, parsed)


def load_weights(data: bytes) -> "dict[str, Tensor]":
    """The tensors of one stage from its file in a bundle."""
    from safetensors.torch import load  # noqa: PLC0415

    state: dict[str, Tensor] = load(data)
    return state


def _check_ranges(parsed: _BundleFile, where: str) -> None:
    """Refuse ranges that are not one for each convolution after the first."""
    if parsed.quantization is None:
        return
    expected = BACKBONES[parsed.model.backbone].convolutions - 1
    for stage, ranges in asdict(parsed.quantization).items():
        if len(ranges) != expected:
            raise InputError(
                f"{where}: quantization.{stage} has {len(ranges)} ranges, {parsed.model.backbone} "
                f"needs {expected}; copy the bundle again"
            )


def _check_tensors(data: bytes, settings: ModelSettings, where: str) -> None:
    """Refuse weights that are not those of the settings' network."""
    expected = BACKBONES[settings.backbone].tensor_shapes(len(settings.classes))
    try:
        tensors: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]
        found = {name: tuple(tensor["shape"]) for name, tensor in tensors}
    except SafetensorError:
        found = {}
    if found != expected:
        raise InputError(f"{where} does not hold the tensors of {settings.backbone}")


def _check_digest(store: Store, name: str, parsed: _BundleFile, flag: str) -> bytes:
    data = _read(store, name, flag)
    if hashlib.sha256(data).hexdigest() != parsed.files.get(name):
        raise InputError(
            f"{flag}: {store.uri}/{name} does not have the digest in {BUNDLE_FILE}; copy the "
            f"bundle again or train a new one"
        )
    return data


def _read(store: Store, name: str, flag: str) -> bytes:
    try:
        return store.read(name)
    except StoreError as error:
        what = f"{flag}: {store.uri}/{name} (a bundle is a directory that 'lesioncam train' wrote)"
        raise refusal(what, error) from error


def _render(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(content)).hexdigest()
