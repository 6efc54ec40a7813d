"""Files and folders whole or not there, locks on folders, and lines of JSON."""

from ldjax.files.locks import FolderLock, lock_folder
from ldjax.files.whole import (
    WriteError,
    json_object,
    read_json_object,
    read_lines,
    whole_file,
    whole_folder,
)

__all__ = [
    "FolderLock",
    "WriteError",
    "json_object",
    "lock_folder",
    "read_json_object",
    "read_lines",
    "whole_file",
    "whole_folder",
]
