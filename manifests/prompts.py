"""The texts of the Asterisk prompts: `core-sounds-en.txt` read, and written as the words that are said.

A line is `relative/path: text`; `;` opens a comment. Notes of the editor stand in brackets: a prompt that is nothing
else is no speech ("[simple beep tone]", "<beep ascending>"), a note behind words ("at [@]") is removed.
"""

import re
from typing import NamedTuple

_NOTE = re.compile(r"\[.*?\]|<.*?>|\(.*?\)")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_KEYS = {"*": "star", "#": "pound"}

# Where the listing is not what is said, and no rule tells how: numbers of several digits, slips of the pen, and words
# that the speaker said otherwise (each heard so by a recognizer in every cut-out of the recording it was given).
_SPOKEN = {
    "conf-adminmenu-menu8": {"umute": "unmute"},
    "confbridge-binaural-off": {"3D": "three D"},
    "confbridge-binaural-on": {"3D": "three D"},
    "demo-congrats": {"help you to get started": "help you get started"},
    "demo-instruct": {
        "dial 500": "dial five zero zero",
        "dial 600": "dial six zero zero",
        "28.8": "twenty eight point eight",
        "1234": "one two three four",
        "4242": "four two four two",
        "8500": "eight five zero zero",
        "Finally,  you": "You",
    },
    "demo-moreinfo": {"www.asterisk.org": "w w w dot asterisk dot org"},
    "digits/h-40": {"fourtieth": "fortieth"},
    "invalid": {"I am sorry, that's": "I'm sorry, that is"},
    "letters/exclaimation-point": {"exclaimation-point": "exclamation point"},
    "pbx-invalid": {"I am sorry, that's": "I am sorry, but that's"},
    "pbx-invalidpark": {"I am sorry, there": "I am sorry, but there"},
    "priv-callee-options": {"thru": "through"},
    "queue-periodic-announce": {"represenatives": "representatives"},
    "spy-h323": {"H.323": "H three two three"},
    "unidentified-no-callback": {"Un-indentified": "Unidentified", "witheld": "withheld"},
    "vm-mismatch": {"passwords": "password"},
}


class Prompt(NamedTuple):
    written: str  # as in the package
    spoken: str  # the words of the recording, with the punctuation of the package


def read_prompts(listing: str) -> dict[str, Prompt]:
    """Path (without its ending) -> prompt, for all prompts that are speech."""
    prompts = {}
    for line in listing.splitlines():
        path, colon, written = line.partition(":")
        if not colon or line.startswith(";"):
            continue
        spoken = _spoken(path, written)
        if spoken:
            prompts[path] = Prompt(written.strip(), spoken)
    return prompts


def _spoken(path: str, written: str) -> str:
    text = _NOTE.sub(" ", written)
    for old, new in _SPOKEN.get(path, {}).items():
        assert old in text, f"{path}: {old!r} is not in {text!r}"
        text = text.replace(old, new)
    text = re.sub(r"\b\d\b", lambda digit: _DIGITS[int(digit[0])], text)
    text = re.sub(r"[*#]", lambda key: _KEYS[key[0]], text)
    return " ".join(text.split())
