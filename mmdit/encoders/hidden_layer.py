"""Which layer's states are a prompt: chosen once, and noted in the frozen model's config, so that it is saved with it."""

from __future__ import annotations

from typing import Any

from mmdit.errors import UserError

LAYER_KEY = "prompt_hidden_layer"  # in the config of the model


def noted_layer(model: Any) -> int:
    """Number of the layer whose states are taken, 0 = the embeddings, as it is noted in the model's config."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    return int(getattr(model.config, LAYER_KEY, -1)) % (layers + 1)


def note_layer(model: Any, hidden_layer: int | None) -> int:
    """Choose the layer of a model of transformers whose states are taken, in its ``hidden_states``.

    Args:
        hidden_layer: 0 = embeddings, -1 = the last, behind its norm; None = what is noted in the model's config, else the last.

    Raises:
        UserError: a layer that the model doesn't have.
    """
    if hidden_layer is None:
        hidden_layer = getattr(model.config, LAYER_KEY, -1)
    layers = int(model.config.get_text_config().num_hidden_layers)
    if not isinstance(hidden_layer, int) or not -layers - 1 <= hidden_layer <= layers:
        raise UserError(
            f"hidden_layer is {hidden_layer!r}: the model has {layers} layers, give {-layers - 1} to {layers}"
        )
    if hidden_layer != -1 or hasattr(model.config, LAYER_KEY):
        setattr(model.config, LAYER_KEY, hidden_layer)
    return hidden_layer
