"""Turning the turns of a conversation into the text that a chat model expects, by the model's own template."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from rankscope.errors import UserError


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    today: date | None = None,
) -> str:
    """A conversation as one text, as `apply_chat_template(..., tokenize=False)` of transformers gives it.

    Args:
        template: The Jinja template, from the model's folder: untrusted, so it runs in a sandbox.
        messages: `role` and `content` of each turn.
        add_generation_prompt: End with what opens the assistant's turn.
        special_tokens: `bos_token`, `eos_token` and so on, which templates use by these names.
        today: What `strftime_now` tells templates that write the date; by the local clock where not given.

    Raises:
        UserError: The template is no valid Jinja, or refuses the conversation.
    """
    try:
        return _compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=_strftime_now(today),
            **special_tokens,
        )
    # Templates call methods of plain strings and lists, which raise Python's own errors on a shape they did not expect.
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(
            f"the model's chat template refuses a conversation with the roles {roles}: {error}",
            where="chat_template",
            mend="bring the turns into the order the model knows (most want user and assistant in turn)",
        ) from None


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    # The settings are those of transformers: a template that is blind to them renders other blanks and line breaks.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's tokens; the text itself is unchanged."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(today: date | None) -> Callable[[str], str]:
    # Templates expect the local clock, as transformers gives them; a fixed day has no time but its start.
    moment = datetime.now() if today is None else datetime.combine(today, time.min)  # noqa: DTZ005
    return moment.strftime
