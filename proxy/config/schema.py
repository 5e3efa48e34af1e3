"""The JSON Schema of the file, generated from the model, for editors that complete and check.

It describes what is *written*: a duration is text with a pattern, not seconds. TOML has no null,
so "not set" is no value, only the absence of the key. The generated file ships with the package;
a test keeps it equal to the model.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from proxy.config.model import Config

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
FILE: Final = "sockpair.schema.json"


class _Schema(GenerateJsonSchema):
    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        written = super().default_schema(schema)
        if written.get("default", ...) is None:
            del written["default"]
        return written

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return {**super().dict_schema(schema), "additionalProperties": False}  # other keys

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # it would repeat the key

    def generate(
        self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation"
    ) -> JsonSchemaValue:
        return {"$schema": DIALECT, **super().generate(schema, mode), "title": "sockpair.toml"}


def json_schema() -> dict[str, Any]:
    """Generate the schema from the model."""
    return Config.model_json_schema(schema_generator=_Schema)


def schema_text() -> str:
    """The schema as the file that ships with the package holds it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def shipped_schema() -> str:
    """The file that ships with the package."""
    return files("proxy.config").joinpath(FILE).read_text("utf-8")
