"""Converts strings to lower case as the parser of records does, with operations of TensorFlow."""

import tensorflow as tf

from trainer.data.examples import is_missing

# The letters, besides I and J, whose lower case is another one in the locales of Turkish, Azerbaijani and Lithuanian.
# TensorFlow lowers by the locale of its process.
_BY_LOCALE = {letter: letter.lower() for letter in "\u0130\u00cc\u00cd\u0128\u012e"}


def lowercase(strings: tf.Tensor) -> tf.Tensor:
    """Returns strings as Python's `str.lower` gives them, in any locale. Missing strings stay as they are.

    TensorFlow knows the characters of Unicode 13. It does not change the few capital letters that later versions added,
    and a final sigma beside a later character may become the other sigma.
    """
    lower = tf.strings.lower(strings)  # only ASCII, and not by the locale
    for letter, replacement in _BY_LOCALE.items():
        lower = tf.strings.regex_replace(lower, letter, replacement)
    return tf.where(is_missing(strings), strings, tf.strings.lower(lower, encoding="utf-8"))
