"""Files that are built beside their place, and never put over what stands there."""

import errno
import os

import pytest

from alignment.errors import UserError
from alignment.files import new_file
from alignment.html import write as write_page


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with new_file(path) as part:
        part.write_text("whole")
        assert not path.exists() and part.parent == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "whole"


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(ValueError), new_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_what_another_process_has_put_there_meanwhile_stays(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # as on exFAT
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.txt"
    with new_file(path) as first, new_file(tmp_path / "b.txt") as other:
        first.write_text("")
        other.write_text("other")
    assert (tmp_path / "b.txt").read_text() == "other"
    path = tmp_path / "c.txt"
    with pytest.raises(FileExistsError), new_file(path) as part:
        part.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert not list(tmp_path.glob(".*"))


def test_two_writers_of_one_name_do_not_share_a_part(tmp_path):
    with pytest.raises(FileExistsError), new_file(tmp_path / "a") as one:
        one.write_text("one")
        with new_file(tmp_path / "a") as two:
            two.write_text("two")
            assert one.read_text() == "one"
    assert (tmp_path / "a").read_text() == "two"


def test_a_page_replaces_a_page_alone(tmp_path):
    page = "<!DOCTYPE html>\n<html></html>"
    path = tmp_path / "page.html"
    write_page(path, page, "--html")
    write_page(path, page + "2", "--html")
    assert path.read_text().endswith("2")
    path.write_text("notes")
    with pytest.raises(UserError, match="exists already and is no page"):
        write_page(path, page, "--html")
    assert path.read_text() == "notes"
