"""Values of JSON and YAML files by key, as text: what shell scripts ask of them."""
from __future__ import annotations

import json
import os
import re
from typing import Any

from essence_kd.io.errors import UserError
from essence_kd.io.text import read_lines, read_text

_PART = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]=]+)=([^\[\]]*)\]")


def read_values(path: str) -> Any:
    """The content of a file: YAML where its name ends in .yaml or .yml, else JSON. Raises UserError."""
    if path.endswith((".yaml", ".yml")):
        from essence_kd.io.settings import read_yaml

        return read_yaml(path)
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, one per line."""
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: expected a JSON object; remove the line")
        rows.append(row)
    return rows


def look_up(values: Any, key: str, where: str) -> Any:
    """The value of ``a.0.b``; ``list[field=x|y]`` filters, and a name after a list is taken of each of its items.

    Raises:
      UserError: the key is malformed, or there is no such value; ``where`` starts the message.
    """
    place = 0
    while place < len(key):
        match = _PART.match(key, place)
        if match is None:
            raise UserError(f"'{key}' is no key: names with dots between, such as optim.lr or sets[role=test].name")
        place = match.end()
        name, field, wanted = match.groups()
        if field is not None:
            if not isinstance(values, list):
                raise UserError(f"{where}: what {key[:match.start()]} names is no list")
            having = [item for item in values if isinstance(item, dict) and field in item]
            if values and not having:
                raise UserError(f"{where}: nothing in '{key[:match.start()]}' has a field '{field}'")
            values = [item for item in having if as_text(item[field]) in wanted.split("|")]
        elif isinstance(values, list) and not re.fullmatch("[0-9]{1,9}", name):
            values = [look_up(item, name, where) for item in values]
        else:
            try:
                values = values[int(name)] if isinstance(values, list) else values[name]
            except (KeyError, IndexError, TypeError):
                raise UserError(f"{where}: there is no {key[:place]}") from None
    return values


def as_text(value: Any) -> str:
    """A value as the shell has it: null is nothing, items of a list have blanks between, groups are JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return " ".join(map(as_text, value))
    return json.dumps(value, ensure_ascii=False)
