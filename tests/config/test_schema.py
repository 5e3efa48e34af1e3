"""The JSON Schema: equal to the model, and true of what people write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from proxy.config.schema import json_schema, schema_text, shipped_schema


def test_the_shipped_file_is_what_the_model_gives() -> None:
    assert shipped_schema() == schema_text(), "write it again: sockpair schema > FILE"
    assert json.loads(schema_text()) == json_schema()


def keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in (schema, *schema["$defs"].values()):
        yield from table["properties"].items()


def test_patterns_accept_the_defaults_and_examples() -> None:
    tried = 0
    for name, key in keys(json_schema()):
        texts = [*key.get("examples", []), key.get("default", "")]
        for text in filter(None, texts if "pattern" in key else []):
            assert re.search(key["pattern"], text), name
            tried += 1
    assert tried >= 8


def test_it_describes_what_is_written() -> None:
    schema = json_schema()
    assert '"null"' not in schema_text()
    assert schema["$defs"]["Upstream"]["properties"]["endpoints"]["minItems"] == 1
    assert schema["$defs"]["PerFlow"]["properties"]["connect"]["default"] == "5s"
    assert schema["properties"]["listener"]["additionalProperties"] is False
    assert all("$ref" in key or key["description"] for _, key in keys(schema))
