"""A model that reads records in chunks: it takes the state after the steps before, and returns the new one."""

import keras

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.model.recurrent_stack import RecurrentStack, StatefulStack
from trainer.model.unique_names import make_unique_name


def chunk_model(
    model: keras.Model, schema: Schema, *, full_rows: bool = False, probabilities: bool = False
) -> keras.Model:
    """Returns a model with the same layers that maps (features, state) to (output, new state).

    Features and output are those of `head_model`: the output is the one before softmax or sigmoid. A chunk holds the
    next steps of each record, and `length` is their number. State: see StackState.

    Args:
        model: What `build_model` returned.
        full_rows: See StatefulStack.
        probabilities: Whether the output is that of `model`, after softmax or sigmoid.

    Raises:
        UserError: The model is bidirectional.
    """
    unique = make_unique_name(schema)
    layers = {layer.name: layer for layer in model.layers}
    stack = check_forward(model)
    hidden, length = stack.input
    state = [keras.Input((width,)) for width in stack.state_widths]
    output, new_state = StatefulStack(stack, full_rows=full_rows, name=unique("chunk"))(hidden, length, state)
    if unique("with_context") in layers:
        joined, repeat = layers[unique("with_context")].input[1], layers.get(unique("context_steps"))
        if repeat is not None:
            joined = repeat(repeat.input[0], output)
        output = layers[unique("with_context")]([output, joined])
    for name in ("head", "number", "value", *(["probabilities"] if probabilities else [])):
        if unique(name) in layers:
            output = layers[unique(name)](output)
    return keras.Model((model.input, state), (output, new_state), name="lengthwise_chunk")


def check_forward(model: keras.Model) -> RecurrentStack:
    """Returns the recurrent layers of a model that can read records in chunks.

    Raises:
        UserError: The model is bidirectional.
    """
    stack = find_stack(model)
    if stack.bidirectional:
        raise UserError(
            "A bidirectional model reads each record from its end, too, so it cannot read a record in chunks. Leave "
            "--chunk_steps out, or train a model without --bidirectional."
        )
    return stack


def find_stack(model: keras.Model) -> RecurrentStack:
    """Returns the recurrent layers of a model."""
    return next(layer for layer in model.layers if isinstance(layer, RecurrentStack))
