"""Overrides as people type them, made readable for Hydra.

Hydra reads ``key=value`` by a grammar to which many file names are errors: ``epoch=0-step=12.ckpt``, ``set [1]``,
``~/x``, every letter beyond ASCII. Here a value that it cannot read is put in quotes, so that it is the text that was
typed; what it can read means what it always did. For keys that are paths every value is a text: a folder may be called
``2024`` or ``[v2]``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from smsff.config.paths import FILES, NAMES, at_home
from smsff.errors import UserError

PATHS = (*FILES, *NAMES, "hydra.run.dir", "hydra.sweep.dir")
FLAGS = {
    **dict.fromkeys(
        ("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"), False
    ),
    **dict.fromkeys(("-sc", "--shell-completion"), False),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun"), True),
    **dict.fromkeys(("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"), True),
}
"""Hydra's own options, and whether a value follows."""

_PARSER = OverridesParser.create()


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command for Hydra: the overrides first, each readable, then the options in their order.

    Raises:
        UserError: an option that there is not, or a word that is no override.
    """
    words: list[str] = []
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if "=" not in word and not word.startswith("~"):
                whole = shlex.quote(f"{words[-1]} {word}" if words else f"{word}=VALUE")
                raise UserError(
                    f"{word}: no override: they are written KEY=VALUE, without spaces around =, and in quotes if the "
                    f"value has spaces, such as {whole}"
                )
            words.append(word)
            continue
        name, equal, _ = word.partition("=")
        found = [flag for flag in FLAGS if flag == name or (name.startswith("--") and flag.startswith(name))]
        if not found:
            raise no_option(word, rest)
        flags.append(word)
        if FLAGS[found[0]] and not equal:
            flags += rest[:1]
            del rest[:1]
    sweep = any(flag == "-m" or (len(flag) > 2 and "--multirun".startswith(flag)) for flag in flags)
    sweep = sweep or "hydra.mode=MULTIRUN" in words
    return [readable(word, sweep=sweep) for word in words] + flags


def no_option(word: str, following: Sequence[str] = ()) -> UserError:
    """What to say of a word that begins with a dash and is no option: most are keys."""
    key, equal, value = word.lstrip("-").partition("=")
    if not equal and following and not following[0].startswith("-") and "=" not in following[0]:
        equal, value = "=", following[0]
    paste = shlex.quote(f"{key}={value or 'VALUE'}")
    return UserError(f"{word}: there is no such option; a key is written without dashes: {paste}")


def readable(word: str, *, sweep: bool) -> str:
    """One override, ``key=value`` with or without ``+`` before it, as Hydra can read it; ``~key`` is left as it is.

    `sweep`: commas separate the values of a sweep.
    """
    head, equal, value = word.partition("=")
    if not equal or word.startswith("~") or _parsed(f"{head}=x") is None:  # Hydra says what is wrong with a key
        return word
    is_path = head.lstrip("+") in PATHS
    override = _parsed(word)
    listed = re.fullmatch(r"choice\((.*)\)", value, re.DOTALL)
    if sweep and listed and (override is None or "'" in value or '"' in value):
        return f"{head}={_choices(head, listed[1])}"  # Hydra drops quotes inside of choice(...)
    if override is not None and not (is_path and _is_bare(override)):
        return word
    if not is_path and value.startswith(("[", "{")):
        mended = f"{head}={re.sub(_LEAF, _readable_leaf, value)}"
        if _parsed(mended) is not None:
            return mended
    if sweep and "," in value:
        return f"{head}={_choices(head, value)}"
    if is_path:
        return f"{head}={quoted(str(at_home(_text(override, value))))}"
    return f"{head}={quoted(value)}"


def quoted(text: str) -> str:
    """A text in quotes, which Hydra's grammar reads as this very text (and ``${...}`` in it as a reference)."""
    return QuotedString(text, Quote.double).with_quotes()


_LEAF = re.compile(r"""'[^']*'|"[^"]*"|[^\[\]{},:\s][^\[\]{},:]*""")


def _readable_leaf(found: re.Match[str]) -> str:
    """An element of a list or mapping, or a key of one."""
    return found[0] if _parsed(f"x={found[0]}") is not None else quoted(found[0].rstrip())


def _parsed(word: str) -> Override | None:
    try:
        return _PARSER.parse_override(word)
    except HydraException:
        return None


def _is_bare(override: Override) -> bool:
    """Whether the value of a path was typed without quotes and reads as something else, or begins at home."""
    if override.value_type is not ValueType.ELEMENT:
        return override.value_type is ValueType.SIMPLE_CHOICE_SWEEP
    value = override.value()
    return value.startswith("~") if isinstance(value, str) else value is not None


def _text(override: Override | None, value: str) -> str:
    known = override.value() if override is not None and override.value_type is ValueType.ELEMENT else None
    return known if isinstance(known, str) else value


def _choices(head: str, value: str) -> str:
    """The values of a sweep, each readable. A comma in brackets or quotes does not separate."""
    return ",".join(readable(f"{head}={one}", sweep=False).partition("=")[2] for one in _separated(head, value))


def _separated(head: str, value: str) -> Iterator[str]:
    """Parts between commas; as many of them together as Hydra reads as one element."""
    parts = value.split(",")
    while parts:
        for count in range(len(parts), 0, -1):
            one = ",".join(parts[:count]).strip()
            override = _parsed(f"{head}={one}")
            if count == 1 or (override is not None and override.value_type is ValueType.ELEMENT):
                yield one
                del parts[:count]
                break
