"""Dataclasses as TOML text and as a JSON Schema."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgekit import codec


def to_toml(value: Any) -> str:
    """A dataclass as TOML. Tables of one level, arrays of tables and inline tables are enough for us."""
    plain = codec.to_plain(value)
    simple = {key: item for key, item in plain.items() if not _is_table(item)}
    parts = [_pairs(simple)]
    for key, item in plain.items():
        if isinstance(item, dict):
            parts.append(f"[{key}]\n{_pairs(item)}")
        elif _is_table(item):
            parts += [f"[[{key}]]\n{_pairs(table)}" for table in item]
    return "\n".join(parts)


def json_schema(cls: type, title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a dataclass; field docstrings become descriptions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_object(cls)}


def _is_table(item: Any) -> bool:
    return isinstance(item, dict) or (isinstance(item, list) and bool(item) and isinstance(item[0], dict))


def _pairs(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(item)}\n" for key, item in table.items())


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key)


def _value(item: Any) -> str:
    if isinstance(item, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in item.items()) + " }" if item else "{}"
    if isinstance(item, list):
        return "[" + ", ".join(_value(v) for v in item) + "]"
    # TOML's basic strings, numbers and booleans are JSON's, except that DEL must be escaped.
    return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007F")


def _object(cls: type) -> dict[str, Any]:
    hints, texts = get_type_hints(cls), _field_texts(cls)
    properties: dict[str, Any] = {}
    required = []
    for item in dataclasses.fields(cls):
        described = {"description": texts[item.name]} if item.name in texts else {}
        properties[item.name] = {**_schema(hints[item.name]), **described}
        if item.default is not dataclasses.MISSING:
            properties[item.name]["default"] = codec.to_plain(item.default)
        elif item.default_factory is dataclasses.MISSING:
            required.append(item.name)
    closed = {"additionalProperties": False}
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        **closed,
    }


def _schema(hint: Any) -> dict[str, Any]:
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    arguments = get_args(hint)
    if hint in names:
        return {"type": names[hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _object(hint)
    if get_origin(hint) is Literal:
        return {"enum": list(arguments)}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if isinstance(hint, types.UnionType):
        return {"type": [names[argument] for argument in arguments]}
    raise TypeError(f"no schema for {hint}")


def _field_texts(cls: type) -> dict[str, str]:
    """The string literals that follow the fields of `cls` in its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    assert isinstance(tree.body[0], ast.ClassDef)  # noqa: S101 - getsource of a class
    body = tree.body[0].body
    texts = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                texts[field.target.id] = inspect.cleandoc(text.value).replace("\n", " ")
    return texts
