"""Small networks of ours that are no diffusers models: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mmdit.errors import UserError
from mmdit.storage.component import check_component
from mmdit.storage.files import write_atomically
from mmdit.storage.json_object import write_json
from mmdit.storage.weights import refuse_non_finite

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"

Network = TypeVar("Network", bound="SavedNetwork")


class SavedNetwork(nn.Module):
    """A network whose ``config`` has the arguments it was built with, as JSON values.

    ``what`` names it in errors.
    """

    what: ClassVar[str] = "network"
    config: dict[str, Any]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS_NAME, save({k: value.contiguous() for k, value in self.state_dict().items()}))
        write_json(folder / CONFIG_NAME, {"_class_name": type(self).__name__, **self.config})

    @classmethod
    def from_pretrained(cls: type[Network], folder: str | Path) -> Network:
        """Load what ``save_pretrained`` wrote, in float32, frozen and in evaluation mode.

        Raises:
            UserError: the folder is incomplete, damaged, or another network's.
        """
        folder = Path(folder)
        try:
            config = check_component(folder, cls)
            network = cls(**{key: value for key, value in config.items() if not key.startswith("_")})
            state = {key: value.float() for key, value in load_file(folder / WEIGHTS_NAME).items()}
            network.load_state_dict(state)
            refuse_non_finite(network, folder / WEIGHTS_NAME)
        except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder}: no usable {cls.what} ({CONFIG_NAME} and {WEIGHTS_NAME}): {error}") from None
        return network.eval().requires_grad_(False)
