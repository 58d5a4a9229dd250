"""What must not be written down: found in settings and command lines, and hidden.

A secret may come as `--token X`, `--password=X`, `section.api_key=X`, `X_TOKEN=..`, inside a URL, or be known by its
look.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_WORDS = ("token", "password", "passwd", "passphrase", "secret", "credential", "credentials", "auth", "apikey", "pwd")
_PAIRS = (("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("account", "key"))
# Secrets that show themselves: the login in a URL, a bearer token, keys with the prefix of their maker.
_PLAIN = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?<=[Bb]earer )\S+|\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}"
)


def scrubbed_argv(argv: Sequence[str]) -> list[str]:
    """The words of a command line with the values of secrets hidden."""
    found: list[str] = []
    is_value = False  # of the option before
    for word in argv:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-")
        if is_value and not is_option:
            found.append(HIDDEN)
            is_value = False
            continue
        secret = is_secret(name)
        found.append(f"{name}={HIDDEN}" if equals and secret else _PLAIN.sub(HIDDEN, word))
        is_value = is_option and secret and not equals
    return found


def is_secret(name: str) -> bool:
    """Whether a key, an option or a variable of this name holds a secret: `api_key`, `--hf-token`, `WANDB_API_KEY`.

    Not `token_ids`, `num_tokens` or `tokenizer`, whose last word is another.
    """
    last = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name.rpartition(".")[2])
    words = [word for word in re.split(r"[^a-z0-9]+", last.lower()) if word]
    return bool(words) and (words[-1] in _WORDS or tuple(words[-2:]) in _PAIRS)


def scrubbed(value: Any) -> Any:
    """Settings, or a text, with the values of secrets hidden."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and isinstance(one, str) else scrubbed(one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [scrubbed(one) for one in value]
    return _PLAIN.sub(HIDDEN, value) if isinstance(value, str) else value
