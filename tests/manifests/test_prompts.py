"""The listing of the Asterisk prompts as the words that are said."""

import pytest

from manifests.prompts import Prompt, read_prompts


@pytest.mark.parametrize(
    ("line", "spoken"),
    [
        ("agent-alreadyon: That agent is on.  Please wait.", "That agent is on. Please wait."),
        ("priv-callpending: who introduces themselves as:", "who introduces themselves as:"),
        ("letters/at: at [@]", "at"),
        ("letters/space: space [ ]", "space"),
        ('spy-iax2: IAX (note: does not say "2")', "IAX"),
        ("vm-intro: press the pound key. (simple tone sound plays)", "press the pound key."),
        ("dictate/both_help: press * to pause, # to enter", "press star to pause, pound to enter"),
        ("vm-opts: Press 2 to change folders, 0 to exit.", "Press two to change folders, zero to exit."),
        ("spy-h323: H.323", "H three two three"),
        ("unidentified-no-callback: Un-indentified or witheld", "Unidentified or withheld"),
    ],
)
def test_what_is_said(line, spoken):
    path, _, written = line.partition(": ")
    assert read_prompts(line) == {path: Prompt(written, spoken)}


def test_what_is_no_speech_is_left_out():
    listing = "; Core Sounds: English\n\nbeep: [a beep]\nconfbridge-join: <beep>\nsilence/1: (1 second of silence)\n"
    assert read_prompts(listing) == {}


def test_a_correction_that_fits_nothing_is_refused():
    with pytest.raises(AssertionError, match="vm-mismatch"):
        read_prompts("vm-mismatch: something else")
