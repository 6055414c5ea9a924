"""The one exception for what a user got wrong: a sentence that says what, where and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a user. Scripts print its sentence and exit with status 2; from Python it is a `ValueError`."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """An `InputError` for a name that does not exist, with the nearest choice and all the others.

    >>> unknown("model", "simple_cn", ["resnet18", "simple_cnn"]).args[0]
    "unknown model 'simple_cn': did you mean 'simple_cnn'? Choices: resnet18, simple_cnn"
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {hint}Choices: {', '.join(choices)}")
