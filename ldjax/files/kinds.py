"""What a file is that is not the text it should be, by its first bytes."""

__all__ = ["kind_of", "text_kind_of"]

_TABLES = (
    "`polars.read_{0}(FILE).write_ndjson(NEW)`, or the `datasets` library's "
    "`to_json(NEW)`, writes its rows as JSON lines."
)
_UNPACK = "Unpack it, and give the file in it."
#: First bytes, the kind, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", _TABLES.format("parquet")),
    (b"ARROW1", "an Arrow file", _TABLES.format("ipc")),
    (b"FEA1", "a Feather file", _TABLES.format("ipc")),
    # A stream of Arrow, as `datasets` keeps them, begins with the size of a schema.
    (b"\xff\xff\xff\xff", "a stream of Arrow", _TABLES.format("ipc_stream")),
    (b"Obj\x01", "an Avro file", _TABLES.format("avro")),
    (b"ORC", "an ORC file", "Write its rows as JSON lines."),
    (b"SQLite format 3\0", "an SQLite database", "Write its rows as JSON lines."),
    (b"\x89HDF", "an HDF5 file", "Write its rows as JSON lines."),
    (b"\x93NUMPY", "a NumPy array", "Give a file of texts."),
    (b"PK\x03\x04", "a zip archive (or an Excel workbook)", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it: `unzstd FILE`."),
    (b"BZh", "compressed with bzip2", "Unpack it: `bunzip2 FILE`."),
    (b"\xfd7zXZ\0", "compressed with xz", "Unpack it: `unxz FILE`."),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "Unpack it: `unlz4 FILE`."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save it as JSON lines."),
    (b"%PDF", "a PDF document", "Give its text."),
    (b"\x80\x02", "a Python pickle", "Write its rows as JSON lines."),
    (b"\x80\x03", "a Python pickle", "Write its rows as JSON lines."),
    (b"\x80\x04", "a Python pickle", "Write its rows as JSON lines."),
    (b"\x80\x05", "a Python pickle", "Write its rows as JSON lines."),
    (b"\x7fELF", "a program", "Give a file of texts."),
    (b"\xff\xfe\0\0", "text in UTF-32", "Save the file as UTF-8."),
    (b"\xff\xfe", "text in UTF-16", "Save the file as UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Save the file as UTF-8."),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS, not the file itself",
        "Fetch it: `git lfs pull`.",
    ),
)
_TAR = 257, b"ustar"


def kind_of(data: bytes) -> str | None:
    """What a file is that is no plain text, and what to do; None for text.

    Args:
      data: Its first bytes, some hundred or more.

    Examples:
      >>> kind_of(b"BZh91AY&SY")
      'compressed with bzip2. Unpack it: `bunzip2 FILE`.'
      >>> kind_of(b'{"prompt": "Why?"}')
    """
    for magic, kind, fix in _MAGIC:
        if data.startswith(magic):
            return f"{kind}. {fix}"
    place, magic = _TAR
    if data[place:].startswith(magic):
        return f"a tar archive. {_UNPACK}"
    if b"\0" in data[:1024]:
        every_other = data[1:200:2], data[:200:2]
        if any(set(half) == {0} for half in every_other if len(half) > 3):
            return "text in UTF-16. Save the file as UTF-8."
        return "binary: it holds zero bytes. Give a file of texts, as UTF-8."
    return None


def text_kind_of(text: str) -> str | None:
    """What a line of text is that is no JSON object, and what to do; None if unknown.

    Args:
      text: A line.

    Examples:
      >>> text_kind_of("<html>")
      'it is a page of the web: fetch the file itself'
    """
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        return "it is a page of the web: fetch the file itself"
    if start.startswith("["):
        return (
            "it looks like one JSON array, over many lines: `jq -c '.[]' FILE > NEW` "
            "writes its rows as lines"
        )
    if start.rstrip() == "{":
        return (
            "it looks like JSON over many lines: `jq -c . FILE > NEW` writes each "
            "object as a line"
        )
    for sign, name, how in (
        (",", "CSV", "`polars.read_csv(FILE).write_ndjson(NEW)`"),
        ("\t", "TSV", '`polars.read_csv(FILE, separator="\\t").write_ndjson(NEW)`'),
    ):
        names = [cell.strip().strip('"') for cell in start.split(sign)]
        if len(names) > 1 and {"prompt", "chosen", "rejected"} & set(names):
            return f"it looks like {name}: write its rows as JSON lines, {how}"
    return None
