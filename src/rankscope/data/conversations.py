"""Conversations: the turns before the last answer, and that answer, from messages and from ShareGPT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankscope.data.content import Content, field_error
from rankscope.data.readers import Row

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
}
# A chat template may leave out the turns of a role that it does not know without a word.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MEND = 'turns are {"role": "user", "content": ...}, the last one the assistant\'s'


def message_content(row: Row, messages: Any, field: str) -> Content:
    """A list of `role` and `content`; the last turn, the assistant's, is what is learned.

    Raises:
        UserError: It is no such list, a role is unknown, or it ends with another's turn.
    """
    turns = _turns(row, messages, field, "role", "content")
    for number, (role, _) in enumerate(turns, start=1):
        if role not in _ROLES:
            meant = _SPEAKERS.get(role.strip().lower())
            mend = (f"write '{meant}' for '{role}'; " if meant else "") + f"roles are {', '.join(_ROLES)}"
            raise field_error(row, field, f"has a turn {number} of the unknown role '{role}'", mend)
    return _content(row, turns, field)


def conversation_content(row: Row) -> Content:
    """ShareGPT's list of `from` and `value`; speakers go by their usual names.

    Raises:
        UserError: It is no such list, or ends with another's turn.
    """
    field = "conversations" if "conversations" in row.values else "conversation"
    turns = row.values.get(field)
    keys = ("from", "value")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        keys = ("role", "content")
    named = []
    for speaker, text in _turns(row, turns, field, *keys):
        if speaker.lower() not in _SPEAKERS:
            mend = f"speakers are {', '.join(_SPEAKERS)}"
            raise field_error(row, field, f"has a turn of '{speaker}', who is nobody known", mend)
        named.append((_SPEAKERS[speaker.lower()], text))
    system = row.values.get("system")
    if isinstance(system, str) and system.strip() and named and named[0][0] != "system":
        named.insert(0, ("system", system))
    return _content(row, named, field)


def _turns(row: Row, turns: Any, field: str, speaker: str, text: str) -> list[tuple[str, str]]:
    if not isinstance(turns, list) or not turns:
        problem = "is missing" if turns is None else "is empty" if turns == [] else "is no list of turns"
        raise field_error(row, field, problem, _MEND)
    pairs = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get(speaker), str):
            raise field_error(row, field, f"has a turn {number} without '{speaker}'", _MEND)
        if not isinstance(turn.get(text), str):
            raise field_error(row, field, f"has a turn {number} whose '{text}' is no text", _MEND)
        pairs.append((turn[speaker], turn[text]))
    return pairs


def _content(row: Row, turns: list[tuple[str, str]], field: str) -> Content:
    *before, (role, answer) = turns
    if role != "assistant":
        raise field_error(row, field, f"ends with a turn of '{role}', so there is nothing to learn", _MEND)
    if not answer.strip():
        raise field_error(row, field, "ends with an empty answer")
    if not any(role == "user" for role, _ in before):
        raise field_error(row, field, "has no turn of the user before the answer", _MEND)
    return Content(row, tuple(before), answer)


def answered_turns(content: Content) -> list[Content]:
    """A conversation once for every answer in it, each with the turns before it; other rows as they are."""
    turns = content.turns
    places = [place for place, (role, text) in enumerate(turns) if role == "assistant" and text.strip()]
    earlier = [
        replace(content, turns=turns[:place], answer=turns[place][1])
        for place in places
        if any(role == "user" for role, _ in turns[:place])
    ]
    return [*earlier, content]
