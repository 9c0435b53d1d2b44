"""Texts that presets make of several columns of a row: small Jinja templates, rendered in a sandbox."""

from __future__ import annotations

import functools

import jinja2
import jinja2.sandbox

from rankscope.data.content import field_error, text_field
from rankscope.data.readers import Row
from rankscope.errors import UserError


def row_text(row: Row, text: str) -> str:
    """A column's text, or what a template (it has `{{`) makes of the row's columns.

    Raises:
        UserError: A column is missing, is no text, or the template does not fit it; with file and line.
    """
    if "{{" not in text:
        return text_field(row, text)
    try:
        made = _compiled(text).render({name: value for name, value in row.values.items() if isinstance(name, str)})
    # Templates call methods of plain values, which raise Python's own errors on a type that they did not expect.
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"the row does not fit the preset's template ({error})",
            where=row.where,
            mend="correct the row, or name the `columns` and leave `preset` out",
        ) from None
    if not made.strip():
        raise field_error(row, text, "is empty")
    return made


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(text)
