import os

import pytest

from mmdit.storage.listing import is_hidden, list_folders, list_images


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_what_systems_leave_behind_is_no_image_and_no_folder(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/1.png", "b-c/3.webp"):
        _touch(tmp_path / name)
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", ".thumbnails/a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png"):
        _touch(tmp_path / name)
    _touch(tmp_path / "__MACOSX/b/1.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == ["a.jpg"]
    assert list_images(tmp_path, recursive=True) == ["a.jpg", "b/1.png", "b/2.PNG", "b-c/3.webp"]
    assert list_folders(tmp_path) == ["b", "b-c", "folder.png"]


@pytest.mark.parametrize(
    "name", ["._x.png", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", ".ipynb_checkpoints"]
)
def test_hidden_names(name):
    assert is_hidden(name)
    assert not is_hidden(f"x{name}")


def test_links_are_followed_but_for_those_that_never_end(tmp_path):
    _touch(tmp_path / "a/1.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert list_images(tmp_path, recursive=True) == ["a/1.png", "b/1.png"]


def test_a_link_that_leads_nowhere_is_listed_and_stops_nothing(tmp_path):
    _touch(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("missing.png")
    (tmp_path / "c.png").symlink_to("d")
    (tmp_path / "d").symlink_to("c.png")  # in a circle
    assert list_images(tmp_path) == ["a.png", "b.png", "c.png"]
    assert list_folders(tmp_path) == []
