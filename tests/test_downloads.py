"""Downloads: from a local S3 server with the challenge's bucket and file names. Nothing outside."""

import errno
import io
import json
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lesioncam
from lesioncam import datasets, downloads
from lesioncam.cli import main, parse
from lesioncam.columns import DATASETS
from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage import remote_zip
from lesioncam.storage.labels import read_labels
from lesioncam.storage.listing import Listing
from lesioncam.storage.local import LocalStore
from lesioncam.storage.masks import find_masks
from lesioncam.storage.s3 import read_public_range
from lesioncam.storage.s3_client import s3_client
from lesioncam.storage.store import Entry
from tests.challenge import (
    BUCKET,
    COUNTS,
    PREFIX,
    Challenge,
    image_ids,
    labels,
    published,
    zipped,
)
from tests.faults.proxy import Proxy, cut_short, from_then_on

TRAINING, VALIDATION = "ISIC-2017_Training_Data.zip", "ISIC-2017_Validation_Data.zip"
VALIDATION_LABELS = "ISIC-2017_Validation_Part3_GroundTruth.csv"


@pytest.fixture(scope="module")
def bucket_of_challenge(s3_server: str) -> Challenge:
    return Challenge()


@pytest.fixture
def challenge(
    bucket_of_challenge: Challenge, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Challenge]:
    """The public bucket, with samples of nine images; refused requests are repeated at once."""
    monkeypatch.setattr(datasets, "SAMPLE_PER_CLASS", 3)
    monkeypatch.setattr("lesioncam.storage.s3_client.RETRY_PAUSES_S", (0, 0, 0))
    yield bucket_of_challenge
    bucket_of_challenge.restore()


@pytest.fixture(scope="module")
def isic2017(bucket_of_challenge: Challenge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole dataset, downloaded once: change a copy."""
    folder = tmp_path_factory.mktemp("downloads") / "isic 2017"
    lesioncam.download("isic2017", folder)
    return folder


@cache
def expected() -> dict[str, bytes]:
    """The files of `isic2017`, from the published objects."""
    files = {}
    for split, official in (("train", "Training"), ("val", "Validation"), ("test", "Test_v2")):
        files[f"{split}.csv"] = published()[f"ISIC-2017_{official}_Part3_GroundTruth.csv"]
        for kind in ("Data", "Part1_GroundTruth"):
            folder = f"ISIC-2017_{official}_{kind}"
            content = zipfile.ZipFile(io.BytesIO(published()[f"{folder}.zip"]))
            for name in content.namelist():
                file = name.removeprefix(f"{folder}/")
                if file.endswith(".jpg") and not name.startswith("__MACOSX"):
                    files[f"{split}/{file}"] = content.read(name)
                elif file.endswith("_segmentation.png") and not name.startswith("__MACOSX"):
                    files[f"masks/{file}"] = content.read(name)
                elif file.endswith("_metadata.csv") and not name.startswith("__MACOSX"):
                    files[f"{split}-metadata.csv"] = content.read(name)
    return files


def sample(count: int = 9) -> dict[str, bytes]:
    """The files of `sample`; the validation images' classes take turns."""
    ids = image_ids("Validation")[:count]
    images = {f"images/{name}.jpg": expected()[f"val/{name}.jpg"] for name in ids}
    return {"labels.csv": labels(ids), **images}


def found(folder: Path) -> dict[str, bytes]:
    """The files of a directory, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    found.pop("_download.json", None)
    return found


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_download.json").read_text())
    return content


def times_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.*g")}


# What is downloaded


def test_isic2017_is_laid_out_for_training(isic2017: Path) -> None:
    folder = isic2017
    assert found(folder) == expected()
    training = read_labels(f"{folder}/train.csv", "nevus")
    assert sorted(training.ids) == image_ids("Training")
    listing = Listing(f"{folder}/train")
    assert [Path(entry.uri).stem for entry in listing] == image_ids("Training")
    assert not listing.skipped
    assert find_masks(f"{folder}/masks").keys() == {
        image_id for official in COUNTS for image_id in image_ids(official)
    }


def test_the_manifest_has_the_objects_and_the_checksums(isic2017: Path) -> None:
    content = manifest(isic2017)
    assert content["source"] == "s3://isic-challenge-data/2017"
    assert content["objects"].keys() == published().keys()
    for name, facts in content["objects"].items():
        assert facts["size"] == len(published()[name])
        assert facts["etag"]
    checksums = {path: file["sha256"] for path, file in content["files"].items()}
    assert checksums == {path: sha256(data).hexdigest() for path, data in expected().items()}
    assert content["files"]["train/ISIC_0000000.jpg"]["origin"] == TRAINING


@pytest.mark.usefixtures("bucket_of_challenge")
def test_a_sample_transfers_a_fraction_of_the_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transferred = []

    def read(entry: Entry, start: int, end: int) -> bytes:
        transferred.append(end - start)
        return read_public_range(entry, start, end)

    monkeypatch.setattr(remote_zip, "read_public_range", read)
    monkeypatch.setattr(remote_zip, "_TAIL_BYTES", 10_000)
    assert main(["download", "sample", str(tmp_path)]) == 0
    assert sum(transferred) < len(published()[VALIDATION]) / 8

    assert found(tmp_path) == sample(24)
    classes = read_labels(f"{tmp_path}/labels.csv", "nevus").class_indices
    assert np.bincount(classes).tolist() == [8, 8, 8]
    command = shlex.split(capsys.readouterr().out.partition("next:\n")[2])
    assert command[:2] == ["lesioncam", "score"]
    assert parse(command[1:]).images == f"{tmp_path}/images"


def test_the_command_and_the_library_know_the_same_datasets() -> None:
    assert tuple(datasets.CONTENTS) == DATASETS


def test_the_function_can_be_called_again(challenge: Challenge, tmp_path: Path) -> None:
    """A module of the function's name would take its place in the package."""
    assert lesioncam.download("sample", tmp_path)["downloaded"] == 10
    assert lesioncam.download("sample", tmp_path)["downloaded"] == 0


def test_images_and_labels_that_do_not_belong_together_are_reported(
    challenge: Challenge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    challenge.put(VALIDATION_LABELS, labels(["ISIC_0000099", *image_ids("Validation")]))
    assert main(["download", "sample", str(tmp_path)]) == 0
    assert (
        "labels of the sample: 0 images have none, and 1 have no image" in capsys.readouterr().err
    )


# Where it comes from


@pytest.mark.usefixtures("challenge")
def test_the_second_prefix_is_used_if_the_first_has_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_in = f"s3://{BUCKET}/2017"
    monkeypatch.setattr(datasets, "SOURCES", ("s3://gone/2017", published_in))
    assert lesioncam.download("sample", tmp_path)["source"] == published_in
    monkeypatch.setattr(datasets, "SOURCES", ("s3://gone/2017",))  # not asked again
    again = lesioncam.download("sample", tmp_path)
    assert (again["source"], again["downloaded"]) == (published_in, 0)


@pytest.mark.parametrize("name", [TRAINING, "ISIC-2017_Test_v2_Part1_GroundTruth.zip"])
def test_an_object_that_is_missing_is_reported(
    challenge: Challenge, tmp_path: Path, name: str
) -> None:
    challenge.remove(name)
    message = f"^cannot read s3://isic-challenge-data/2017/{name}: no such object.*AWS_ENDPOINT_URL"
    with pytest.raises(InputError, match=message):
        lesioncam.download("isic2017", tmp_path / "isic")
    assert not (tmp_path / "isic").exists()


def test_an_object_that_is_not_public_is_reported(challenge: Challenge, tmp_path: Path) -> None:
    challenge.put(VALIDATION, published()[VALIDATION], acl="private")
    with pytest.raises(InputError, match=r"Validation_Data\.zip: the store refused: 403"):
        lesioncam.download("sample", tmp_path)


def test_data_that_is_nowhere_is_reported(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SOURCES", ("s3://gone/2017", "s3://gone-too/2017"))
    with pytest.raises(InputError, match=r"^cannot read s3://gone/2017 or s3://gone-too/2017: no"):
        lesioncam.download("sample", tmp_path)


@pytest.mark.usefixtures("unreachable")
def test_no_network_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "sample", str(tmp_path / "sample")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the store cannot be reached: EndpointConnectionError; run the same command" in line
    assert not (tmp_path / "sample").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (VALIDATION, zipped({"a.txt": b"1"}, "folder"), "none of the files in question"),
        (
            VALIDATION,
            zipped({"a/ISIC_0000100.jpg": b"1", "b/ISIC_0000100.jpg": b"2"}, "folder"),
            "two files ISIC_0000100.jpg",
        ),
        (VALIDATION_LABELS, b"\xff\xfe", "cannot be read as labels"),
        (
            VALIDATION_LABELS,
            b"image_id,melanoma,seborrheic_keratosis\na,1.0,1.0\n",
            "cannot be read as labels",
        ),
        (VALIDATION_LABELS, b"id,a,b\na,1.0,0.0\n", "other columns"),
    ],
)
def test_objects_of_other_content_are_refused(
    challenge: Challenge, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    challenge.put(name, content)
    with pytest.raises(InputError, match=f"/{name} .*{message}"):
        lesioncam.download("sample", tmp_path)
    assert not list(tmp_path.iterdir())


# Interrupted, damaged, changed


@pytest.mark.usefixtures("challenge")
def test_an_interrupted_download_is_continued(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = from_then_on(cut_short, images=0, requests=9)  # 5 before the first file
    with pytest.raises(RunFailedError, match="run the same command again"):
        lesioncam.download("sample", tmp_path)
    before = found(tmp_path)
    assert 0 < len(before) < 10
    assert before.items() <= sample().items()  # nothing that is cut short
    times_before = times_of(tmp_path)
    (tmp_path / "images" / ".tmp-1-1").write_bytes(b"half a file")  # of a process that was killed

    proxy.fault = None
    assert lesioncam.download("sample", tmp_path)["downloaded"] == 10 - len(before)
    assert found(tmp_path) == sample()
    assert times_before.items() <= times_of(tmp_path).items()
    assert manifest(tmp_path)["files"].keys() == sample().keys()


@pytest.mark.usefixtures("challenge")
def test_a_second_call_checks_what_is_there_and_says_how_to_go_on(
    isic2017: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times_before, content = times_of(isic2017), manifest(isic2017)
    assert main(["download", "isic2017", str(isic2017)]) == 0
    assert times_of(isic2017) == times_before
    assert manifest(isic2017) == content
    printed, logged = capsys.readouterr()
    count = len(expected())
    assert f"{count} files in {isic2017}: 0 downloaded now, {count} were there" in printed
    assert "have no image" not in logged
    command = shlex.split(printed.partition("next:\n")[2])
    assert command[:2] == ["lesioncam", "train"]
    flags = parse(command[1:])
    assert (flags.images, flags.labels) == (f"{isic2017}/train", f"{isic2017}/train.csv")
    assert flags.masks == f"{isic2017}/masks"


@pytest.mark.usefixtures("challenge")
@pytest.mark.parametrize("recorded", [True, False])
def test_a_file_that_was_changed_is_named_and_can_be_restored(
    tmp_path: Path, recorded: bool
) -> None:
    lesioncam.download("sample", tmp_path)
    if not recorded:  # the process was killed before it wrote the checksums
        content = manifest(tmp_path) | {"files": {}}
        (tmp_path / "_download.json").write_text(json.dumps(content))
    changed = tmp_path / "images" / "ISIC_0000103.jpg"
    changed.write_bytes(changed.read_bytes()[:-1])
    (tmp_path / "images" / "ISIC_0000104.jpg").unlink()
    message = "not as published: images/ISIC_0000103.jpg; delete or move them"
    with pytest.raises(InputError, match=message):
        lesioncam.download("sample", tmp_path)
    assert not (tmp_path / "images" / "ISIC_0000104.jpg").exists()

    changed.unlink()
    assert lesioncam.download("sample", tmp_path)["downloaded"] == 2
    assert changed.read_bytes() == expected()["val/ISIC_0000103.jpg"]


@pytest.mark.usefixtures("challenge")
def test_many_changed_files_are_counted(tmp_path: Path) -> None:
    lesioncam.download("sample", tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"ISIC_0000102\.jpg and 6 more; delete"):
        lesioncam.download("sample", tmp_path)


def test_an_object_that_changed_between_two_calls_is_reported(
    challenge: Challenge, tmp_path: Path
) -> None:
    lesioncam.download("sample", tmp_path)
    (tmp_path / "images" / "ISIC_0000100.jpg").unlink()
    before = found(tmp_path)
    challenge.put(VALIDATION, published()[VALIDATION] + b"\0")
    size = len(published()[VALIDATION])
    message = rf"Data\.zip has changed .* had {size} bytes and etag \w+, and has {size + 1} and "
    with pytest.raises(InputError, match=message):
        lesioncam.download("sample", tmp_path)
    assert found(tmp_path) == before


def test_a_damaged_image_is_reported_and_not_written(challenge: Challenge, tmp_path: Path) -> None:
    image = expected()["val/ISIC_0000105.jpg"]
    broken = image[:-9] + bytes([image[-9] ^ 1]) + image[-8:]
    challenge.put(VALIDATION, published()[VALIDATION].replace(image, broken))
    with pytest.raises(RunFailedError, match=r"Data\.zip is damaged: .*ISIC_0000105\.jpg: Bad CRC"):
        lesioncam.download("sample", tmp_path)
    assert not (tmp_path / "images" / "ISIC_0000105.jpg").exists()
    assert found(tmp_path).items() <= sample().items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (published()[VALIDATION][:-100], "is damaged: File is not a zip file"),
        (zipped({"../../ISIC_0000100.jpg": b"1"}, "folder"), "points out of it"),
    ],
)
def test_a_zip_that_cannot_be_used_is_reported_in_one_line(
    challenge: Challenge, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes,
    message: str,
) -> None:  # fmt: skip
    challenge.put(VALIDATION, content)
    assert main(["download", "sample", str(tmp_path / "sample")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lesioncam: s3://isic-challenge-data/2017/{VALIDATION} is damaged: ")
    assert message in line
    assert not list(tmp_path.iterdir())


# The directory


def test_a_directory_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="has other files; name a new or empty directory"):
        lesioncam.download("isic2017", tmp_path)
    with pytest.raises(InputError, match=r"thesis\.txt: Not a directory; name another"):
        lesioncam.download("isic2017", tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_directory_of_another_dataset_is_refused(challenge: Challenge, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"of macOS")
    lesioncam.download("sample", tmp_path)
    with pytest.raises(InputError, match="has the dataset sample; name another directory"):
        lesioncam.download("isic2017", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read; use another directory"), ("{}", "missing dataset"),
     ('{"dataset": 1, "source": "s", "objects": {}, "files": {}}', "dataset is 1")],
)  # fmt: skip
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "_download.json").write_text(content)
    with pytest.raises(InputError, match=rf"_download\.json.*{message}"):
        lesioncam.download("sample", tmp_path)


@pytest.mark.usefixtures("challenge")
def test_too_small_a_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(InputError, match=r"kB are needed and 20\.0kB are free; free some space"):
        lesioncam.download("sample", tmp_path / "new" / "sample")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("challenge")
def test_a_disk_that_fills_up_fails_the_run_and_the_next_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore._write

    def full(store: LocalStore, target: Path, data: bytes) -> None:
        if target.name == "ISIC_0000107.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(store, target, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "_write", full)
        with pytest.raises(RunFailedError, match="No space left on device; fix that and run"):
            lesioncam.download("sample", tmp_path)
    assert lesioncam.download("sample", tmp_path)["downloaded"] > 0
    assert len(found(tmp_path)) == 10


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dataset is 'isic2018'; it should be one of isic2017"):
        lesioncam.download("isic2018", tmp_path)
    with pytest.raises(InputError, match=r"^s3://bucket/isic: downloads go to a local directory"):
        lesioncam.download("sample", "s3://bucket/isic")


# Progress


@pytest.mark.usefixtures("challenge")
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(downloads, "shows_bars", lambda: terminal)
    monkeypatch.setattr(downloads, "_LOG_INTERVAL_S", 0)
    assert main(["download", "sample", str(tmp_path)]) == 0
    printed = capsys.readouterr().err
    assert ("downloading: 100%" in printed) == terminal
    lines = [line for line in printed.splitlines() if "downloaded " in line]
    assert len(lines) == (0 if terminal else 11)
    if lines:
        assert lines[-1].partition(" of ")[2].startswith(lines[-2].split(" ")[2])
    assert f"{VALIDATION}: 9 of its 56 files are used" in printed


def test_nothing_is_requested_from_the_public_bucket_by_these_tests(s3_server: str) -> None:
    assert s3_client(anonymous=True).meta.endpoint_url == s3_server
    assert datasets.SOURCES[0] == f"s3://isic-challenge-data/{PREFIX}".rstrip("/")
