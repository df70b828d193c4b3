"""The state of callbacks in a checkpoint, so that a resumed run calls them with the counts of an uninterrupted one.

A callback keeps its state if it has the methods `get_state()`, which returns a value that is serializable as JSON, and
`set_state(value)`, which is called after `on_train_begin`; or if it is one of Keras's callbacks in `_ATTRIBUTES`. No
callback is pickled: a checkpoint holds numbers and text, never code.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from pipeline.errors import UserError
from trainer.runs.state import CallbackState

_MONITOR = ("best", "wait")
# The attributes of Keras's callbacks that change from epoch to epoch. A subclass may have others: it needs get_state.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: (*_MONITOR, "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: (*_MONITOR, "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
    # Without a state.
    keras.callbacks.CSVLogger: (),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.TensorBoard: (),
    keras.callbacks.TerminateOnNaN: (),
}


def read_states(callbacks: Iterable[keras.callbacks.Callback]) -> tuple[CallbackState, ...]:
    """Returns the states of the callbacks that have one to keep.

    Raises:
        UserError: `get_state` returned a value that is not serializable as JSON.
    """
    return tuple(
        CallbackState(name=_name(callback), json_text=_serialize(callback))
        for callback in callbacks
        if not _is_stateless(callback) and _obstacle(callback) is None
    )


def restore_states(callbacks: Sequence[keras.callbacks.Callback], states: Iterable[CallbackState]) -> str | None:
    """Gives the callbacks their states in a checkpoint; the n-th one of a class gets the n-th state of that class.

    Returns:
        A line that names the callbacks that start anew, or None.
    """
    left, anew = list(states), []
    for callback in callbacks:
        if _is_stateless(callback):
            continue
        obstacle = _obstacle(callback)
        if obstacle is None:
            found = next((state for state in left if state.name == _name(callback)), None)
            if found is not None:
                left.remove(found)
                _assign(callback, json.loads(found.json_text))
                continue
            obstacle = "the checkpoint has no state of it"
        anew.append(f"{type(callback).__name__} ({obstacle})")
    return f"Callbacks that start anew: {', '.join(anew)}." if anew else None


def _is_stateless(callback: keras.callbacks.Callback) -> bool:
    return not _has_methods(callback) and _ATTRIBUTES.get(type(callback)) == ()


def _obstacle(callback: keras.callbacks.Callback) -> str | None:
    """Returns why a callback cannot keep its state, or None."""
    if _has_methods(callback):
        return None
    if type(callback) not in _ATTRIBUTES:
        return "it has no get_state and set_state"
    if getattr(callback, "restore_best_weights", False):
        return "its best weights are not in the checkpoint"
    if getattr(callback, "save_freq", "epoch") != "epoch":
        return "it counts updates"
    return None


def _has_methods(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


def _name(callback: Any) -> str:
    return f"{type(callback).__module__}.{type(callback).__qualname__}"


def _serialize(callback: Any) -> str:
    if not _has_methods(callback):
        return json.dumps({name: _plain(getattr(callback, name, None)) for name in _ATTRIBUTES[type(callback)]})
    state = callback.get_state()
    try:
        return json.dumps(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"The callback {_name(callback)}: get_state returned a {type(state).__name__} that is not serializable as "
            f"JSON ({error}). Expected dicts, lists, strings, numbers, true, false and None."
        ) from None


def _assign(callback: Any, state: Any) -> None:
    if _has_methods(callback):
        callback.set_state(state)
        return
    for name in _ATTRIBUTES[type(callback)]:
        setattr(callback, name, state[name])


def _plain(value: Any) -> Any:
    """Returns a number of NumPy or TensorFlow as one of Python."""
    return value if value is None or isinstance(value, int | float) else np.asarray(value).item()
