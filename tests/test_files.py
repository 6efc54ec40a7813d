"""Files read in lines and written whole."""

import functools
import gzip

import pytest

from ldjax.files import json_object, read_lines, whole_file

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
