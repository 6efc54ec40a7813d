"""The chat templates that lie beside a tokenizer, in the layouts of the hub."""

from pathlib import Path
from typing import Any

from ldjax.files.whole import read_json_object

__all__ = ["FOLDER", "as_field", "templates_beside"]

#: Where newer repositories keep templates of other names than the default one.
FOLDER = "additional_chat_templates"


def templates_beside(folder: Path) -> dict[str, str]:
    """The chat templates of a tokenizer, by name.

    Files of their own (`chat_template.jinja`, and those in `FOLDER`) go before the
    field `chat_template` of `tokenizer_config.json`, as `transformers` has it.

    Args:
      folder: That of its `tokenizer.json`.

    Returns:
      The texts by name: "default", and such as "tool_use". Empty where it has none.

    Raises:
      ValueError: If a file is no UTF-8, or the field is in no form of the hub.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "chat_template.jinja").write_text("{{ messages }}")
      >>> templates_beside(folder)
      {'default': '{{ messages }}'}
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / FOLDER).glob("*.jinja"))}
    found = {name: _read(file) for name, file in files.items() if file.is_file()}
    config = folder / "tokenizer_config.json"
    if found or not config.is_file():
        return found
    try:
        return _from_field(read_json_object(config).get("chat_template"))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{config}: `chat_template` must be a text, or a list of objects with "
            "`name` and `template`. Copy the file of the model again."
        ) from error


def as_field(templates: dict[str, str]) -> str | list[dict[str, str]]:
    """Templates as the field of `tokenizer_config.json` that `transformers` reads.

    Args:
      templates: Texts by name; at least one.

    Examples:
      >>> as_field({"default": "{{ messages }}"})
      '{{ messages }}'
    """
    if [*templates] == ["default"]:
        return templates["default"]
    return [{"name": name, "template": text} for name, text in templates.items()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8: {error}.") from error


def _from_field(field: Any) -> dict[str, str]:
    if field is None:
        return {}
    if isinstance(field, str):
        return {"default": field}
    if not isinstance(field, dict):
        field = {named["name"]: named["template"] for named in field}
    if not all(isinstance(text, str) for pair in field.items() for text in pair):
        raise TypeError
    return field
