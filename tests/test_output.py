"""The folder for evidence: what is made in it, and what is removed."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pytest_anchor.broker import output
from pytest_anchor.broker.output import OutputFolder, folder_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def write(folder: Path, *tests: str, run: str = "one") -> OutputFolder:
    """What a run makes; it is over once this is garbage, as by its lock."""
    made = OutputFolder(str(folder), run)
    for test in tests:
        made.write(test, "screenshot.png", b"content")
    return made


def end(run: OutputFolder) -> None:
    assert run._list is not None
    os.close(run._list)


def files(folder: Path) -> list[str]:
    found = (str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir())
    return sorted(one for one in found if one != ".gitignore")


HOSTILE = [
    "t.py::x",
    "t.py::X",
    "t.py::x[a/b]",
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/",
    "-rf",
    "~",
    "a\0b",
    "a\nb",
    "ümlaut",
    "\ud800",
    "x" * 10_000,
    "x" * 10_001,
    ".pytest-anchor-one",
    "t.py::x.",
    "con",
    "$(touch x)",
]


def test_each_test_has_a_folder_of_a_safe_name(folder: Path):
    names = {folder_name(test).lower() for test in HOSTILE}
    assert len(names) == len(HOSTILE)
    write(folder, *HOSTILE)
    made = [one for one in folder.iterdir() if one.is_dir()]
    assert len(made) == len(HOSTILE)
    assert len(files(folder)) == len(HOSTILE) + 1
    for one in made:
        assert one.name.isascii()
        assert len(one.name) < 100
        assert one.name[0] not in "-."
    assert folder_name("tests/test_shop.py::test_cart[chromium]").startswith("tests-test_shop.py-test_cart-chromium-")


def test_nothing_is_overwritten(folder: Path):
    run = write(folder, "t")
    mine = folder / folder_name("t") / "screenshot-2.png"
    mine.write_bytes(b"mine")
    assert Path(run.write("t", "screenshot.png", b"new")).name == "screenshot-3.png"
    assert mine.read_bytes() == b"mine"


def test_the_next_run_removes_what_a_run_has_made(folder: Path):
    end(write(folder, "a", "b"))
    (folder / "mine.png").touch()
    OutputFolder(str(folder), "two").clean()
    assert sorted(one.name for one in folder.iterdir()) == [".gitignore", "mine.png"]


def test_a_run_that_lives_keeps_what_it_has_made(folder: Path):
    live = write(folder, "a")
    other = OutputFolder(str(folder), "two")
    other.clean()
    before = files(folder)
    assert len(before) == 2
    assert Path(other.write("a", "screenshot.png", b"")).name == "screenshot-2.png"
    end(live)
    end(other)
    OutputFolder(str(folder), "three").clean()
    assert files(folder) == []


def test_a_second_broker_of_a_run_goes_on_with_its_list(folder: Path):
    end(write(folder, "a"))
    again = write(folder, run="one")
    again.clean()
    again.write("a", "screenshot.png", b"")
    end(again)
    assert len(files(folder)) == 3
    OutputFolder(str(folder), "two").clean()
    assert files(folder) == []


def test_a_folder_that_is_removed_meanwhile_is_made_anew(folder: Path):
    run = write(folder, "a")
    (folder / folder_name("a") / "screenshot-1.png").unlink()
    (folder / folder_name("a")).rmdir()
    (folder / ".pytest-anchor-one").unlink()
    (folder / ".gitignore").unlink()
    folder.rmdir()
    run.write("a", "screenshot.png", b"")
    end(run)
    assert len(files(folder)) == 2


def test_an_edited_list_removes_nothing_else(folder: Path, tmp_path: Path):
    end(write(folder, "a"))
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = [outside / "screenshot-1.png", tmp_path / "screenshot-1.png", folder / "top.png"]
    for one in precious:
        one.touch()
    (folder / "link").symlink_to(outside)
    names = ["link", "..", "../outside", "/", str(outside), ".", "", "a/../../outside", "a\0"]
    with (folder / ".pytest-anchor-one").open("a", encoding="utf-8") as file:
        file.writelines(f"{name}/screenshot-1.png\n" for name in names)
        file.write("top.png\n\n/\nx/.pytest-anchor-one\nx/notes.txt\n")
    OutputFolder(str(folder), "two").clean()
    assert all(one.exists() for one in precious)
    assert sorted(one.name for one in folder.iterdir()) == [".gitignore", "link", "top.png"]


def test_what_is_not_a_list_is_left_alone(folder: Path, tmp_path: Path):
    folder.mkdir()
    elsewhere = tmp_path / "list"
    elsewhere.write_text("a/screenshot-1.png\n")
    (folder / "a").mkdir()
    (folder / "a" / "screenshot-1.png").touch()
    (folder / ".pytest-anchor-link").symlink_to(elsewhere)
    (folder / ".pytest-anchor-folder").mkdir()
    os.mkfifo(folder / ".pytest-anchor-pipe")
    (folder / ".pytest-anchor-x.txt").write_text("a/screenshot-1.png\n")
    cleaner = threading.Thread(target=lambda: OutputFolder(str(folder), "two").clean(), daemon=True)
    cleaner.start()
    cleaner.join(10)
    assert not cleaner.is_alive()
    assert (folder / "a" / "screenshot-1.png").exists()
    assert elsewhere.exists()


def test_a_link_in_the_place_of_a_tests_folder_is_not_followed(folder: Path, tmp_path: Path):
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / folder_name("a")).symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        write(folder, "a")
    assert list(outside.iterdir()) == []


def test_a_disk_that_is_full_leaves_no_part_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    run = write(folder, "a")
    fdopen = os.fdopen

    class Full:
        def __init__(self, fd: int, _mode: str) -> None:
            self.file = fdopen(fd, "wb")

        def __enter__(self):
            return self

        def __exit__(self, *_: object):
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "fdopen", Full)
        with pytest.raises(OSError, match="No space left"):
            run.write("a", "screenshot.png", b"content")
    assert len(files(folder)) == 2
    end(run)
