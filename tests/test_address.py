"""Address: what is refused before Ray is asked."""

import os

import pytest

from lesioncam.address import check_ray
from lesioncam.errors import InputError

LONGEST = 107 - len(f"/ray/session_2026-11-29_07-28-39_296476_{os.getpid()}/sockets/plasma_store")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_of_too_long_a_path_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/scratch/".ljust(LONGEST, "x"))
    check_ray()
    monkeypatch.setenv(variable, "/scratch/".ljust(LONGEST + 1, "x"))
    with pytest.raises(InputError, match=rf"^{variable}: .* {LONGEST} bytes; set RAY_TMPDIR") as e:
        check_ray()
    assert "\n" not in str(e.value)


def test_bytes_of_the_path_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/".ljust(LONGEST - 1, "ä"))
    with pytest.raises(InputError):
        check_ray()


def test_a_short_ray_tmpdir_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/".ljust(200, "x"))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray()


def test_on_a_cluster_the_folder_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/".ljust(200, "x"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_ray()
