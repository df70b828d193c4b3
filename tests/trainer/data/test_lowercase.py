"""The model converts strings to lower case as the parser of records does, for all characters and in any locale."""

import os
import random
import subprocess
import sys
import unicodedata

import pytest
import tensorflow as tf

from trainer.data.lowercase import lowercase
from trainer.model.layers import Lookup

# The capital letters that Unicode has since version 14.
LATER = {0x1C89, 0x2C2F, 0xA7C0, 0xA7CB, 0xA7CC, 0xA7CE, 0xA7D0, 0xA7D2, 0xA7D4, 0xA7D6, 0xA7D8, 0xA7DA, 0xA7DC}
LATER |= {*range(0x10570, 0x10596), *range(0x10D50, 0x10D66), *range(0x16EA0, 0x16EB9)}
EVERY = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
SOME = [c for code, c in enumerate(EVERY) if c.lower() != c or code % 50 == 0 or code < 0x600]
WORDS = ["\u039f\u0394\u039f\u03a3", "\u0391\u03a3 \u0391", "TITLE", "\u0130I", "I\u0307", "\u00ccJ\u0301"]
WORDS += ["\u012e\u0300", "", "\x01", "a\nB"]


def lower(strings):
    return [found.decode() for found in lowercase(tf.constant([string.encode() for string in strings])).numpy()]


@pytest.mark.parametrize("characters", [SOME, pytest.param(EVERY, marks=pytest.mark.proof)], ids=["some", "every"])
def test_a_character_has_the_lower_case_that_python_gives_it(characters):
    differ = {ord(c) for c, found in zip(characters, lower(characters), strict=True) if c.lower() != found}
    assert differ <= LATER
    assert lower(map(str.lower, characters)) == [c.lower() for c in characters]  # what is stored stays as it is


def test_strings_have_the_lower_case_that_python_gives_them():
    """The lower case of a sigma depends on its neighbours; those of Unicode 14 and later may give the other one."""
    draw = random.Random(1)
    old = [c for c in EVERY if unicodedata.ucd_3_2_0.category(c) != "Cn"]
    cased = [c for c in old if c.lower() != c or unicodedata.category(c) in ("Mn", "Lm", "Po", "Cf")]
    words = ["".join(draw.choices([*cased, *"\u03a3" * 2000], k=draw.randint(1, 6))) for _ in range(3000)]
    assert lower(WORDS + words) == [word.lower() for word in WORDS + words]


def test_a_lookup_of_lower_case_takes_raw_strings_and_leaves_missing_ones_unknown():
    layer = Lookup(["\ufffd", "b", "\u03c3"], lowercase=True)
    copy = Lookup.from_config(layer.get_config())
    for lookup in (layer, copy):
        assert lookup(tf.constant([[b"B", b"\xff"], ["\u03a3", "\ufffd"]])).numpy().tolist() == [[1, 3], [2, 0]]
    assert Lookup.from_config({"terms": ["b"]})(tf.constant([b"B", b"b"])).numpy().tolist() == [1, 0]


PROGRAM = """
import sys, tensorflow as tf
from trainer.data.lowercase import lowercase
assert tf.strings.lower(sys.argv[1], encoding="utf-8").numpy().decode() != sys.argv[1].lower()  # the locale has effect
words = sys.argv[1:]
assert [w.decode() for w in lowercase(tf.constant(words)).numpy()] == [w.lower() for w in words]
"""


@pytest.mark.proof
@pytest.mark.parametrize(
    ("locale", "word"), [("tr_TR.UTF-8", "TITLE"), ("az_AZ.UTF-8", "I"), ("lt_LT.UTF-8", "\u00cc")]
)
def test_the_locale_of_the_process_has_no_effect(locale, word):
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "1"}
    words = [word, *filter(None, WORDS)]
    subprocess.run([sys.executable, "-c", PROGRAM, *words], env=environment, check=True)
