"""Files read in lines and written whole."""

import errno
import functools
import gzip
import os

import pytest

from ldjax.files.whole import (
    WriteError,
    json_object,
    read_lines,
    whole_file,
    whole_folder,
)

# Without the time of day, which would get into the names of tests.
_packed = functools.partial(gzip.compress, mtime=0)


def test_only_newlines_end_a_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffa\x85b\u2028c\r\n\n d\re\n".encode())
    lines = [line.data.decode() for line in read_lines(file)]
    assert lines == ["a\x85b\u2028c", "", " d\re"]
    assert [line.source for line in read_lines(file)] == [
        f"{file}:{number}" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.gz", b"text", r"a\.gz is not whole gzip: .* take the \.gz off its name"),
        ("a.gz", _packed(b"text" * 99)[:-9], "not whole gzip: .* copy it again"),
        ("a.gz", _packed(b"text")[:-8] + bytes(8), "not whole gzip: CRC"),
        ("a", _packed(b"text"), r"a is gzipped\. Add \.gz to its name"),
    ],
)
def test_damaged_gzip_is_named(tmp_path, name, data, message):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_lines(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "1", "b": "2", "a": "3"}', "field 'a' is given twice. Keep one"),
        (b'{"a": {"b": 1, "b": 1}}', "field 'b' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "not a JSON object but list. Write one JSON object on each line"),
        (b"null", "not a JSON object but NoneType"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data.* one JSON object on each line"),
        (b'{"a": "\xff"}', "not UTF-8: .* Save the file as UTF-8"),
    ],
)
def test_a_line_that_is_no_json_object_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        json_object(line)


def test_what_was_there_stays_when_the_writing_fails(tmp_path):
    def write_half():
        with whole_file(file) as partial:
            partial.write_text("new")
            raise KeyboardInterrupt

    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


MACHINE = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "size limit": OSError(errno.EFBIG, "File too large"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "of Rust": RuntimeError("I/O error: No space left on device (os error 28)"),
    "of TensorStore": ValueError("OUT_OF_RANGE: pages [os_error_code='27'] and pages"),
}


@pytest.mark.parametrize("kind", MACHINE)
@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_what_the_machine_refuses_is_one_line_with_the_path(tmp_path, kind, write):
    path = tmp_path / "a"

    def write_some():
        with write(path) as partial:
            file = partial / "b" if write is whole_folder else partial
            file.write_text("12345")
            raise MACHINE[kind]

    with pytest.raises(WriteError) as caught:
        write_some()
    said = str(caught.value)
    assert said.startswith(f"{path} cannot be written: ")
    assert "\n" not in said
    assert ("5 B of it were written" in said) == (kind != "read-only")
    assert not list(tmp_path.iterdir())


def test_errors_about_other_files_are_left_as_they_are(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="nowhere"),
        whole_file(tmp_path / "a") as partial,
    ):
        partial.write_text((tmp_path / "nowhere").read_text())
    with pytest.raises(ValueError, match=r"^a bug$"), whole_file(tmp_path / "a"):
        raise ValueError("a bug")


def test_something_in_the_place_of_what_is_not_whole_is_left_there(tmp_path):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".b.partial").write_text("somebody's")
    with pytest.raises(FileExistsError, match=r"\.a\.partial is a folder, where"):
        whole_file(tmp_path / "a").__enter__()
    with pytest.raises(FileExistsError, match=r"\.b\.partial is a file, where"):
        whole_folder(tmp_path / "b").__enter__()
    assert (tmp_path / ".b.partial").read_text() == "somebody's"


def test_a_folder_gives_way_once_its_successor_is_whole(tmp_path):
    path = tmp_path / "a"
    for name in ("old", "new"):
        with whole_folder(path, replaces=True) as partial:
            (partial / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(ValueError, match="a bug"), whole_folder(path, replaces=True):
        raise ValueError("a bug")
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(FileExistsError, match="not empty"), whole_folder(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_shared_file_is_not_written_through_anothers_place(tmp_path):
    with whole_file(tmp_path / "a", is_shared=True) as mine:
        assert str(os.getpid()) in mine.name
        mine.write_text("mine")
    assert (tmp_path / "a").read_text() == "mine"
