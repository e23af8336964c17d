"""YAML text of plain values, and back.

**Pure**: imported only by what reads or writes YAML, for it costs 20 ms.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def dump(value: Any) -> str:
    """Block style, keys in their own order."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    sink = StringIO()
    yaml.dump(value, sink)
    return sink.getvalue()


def load(text: str) -> Any:
    """Raises ValueError with the place of the fault."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from error
