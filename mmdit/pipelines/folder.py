"""The pipeline's folder: diffusers' own, saved with a model card and what lets diffusers itself load it, checked when loaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusers.utils import is_accelerate_available, logging

from mmdit.encoders.pretrained import quiet
from mmdit.modalities import Modality
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.card import CARD, CODE, model_card, saw_photographs, write_card, write_code
from mmdit.pipelines.loading import (
    INDEX,
    check_folder,
    download,
    load_optional,
    naming_model,
    resolve_model,
    safe_arguments,
)
from mmdit.storage.files import share_weights
from mmdit.storage.json_object import read_object, write_json
from mmdit.storage.weights import refuse_non_finite

if TYPE_CHECKING:
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

logger = logging.get_logger(__name__)


class FolderMixin:
    """Base of ``MultimodalDiTPipeline``, before diffusers' own."""

    transformer: MultimodalDiT
    config: Any
    components: Any
    text_encoder: Any
    native_size: Any
    native_shape: Any
    photographs: bool | None = None  # whether the model saw any in training, as its card says; None = unknown
    _modalities: dict[str, Modality]
    _id2label: dict[int, str]
    config_name: ClassVar[str] = INDEX

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> MultimodalDiTPipeline:
        """Load a bundled model by name, a local folder, or a Hub repository (looked up in this order).

        Takes diffusers' keyword arguments (``torch_dtype``, ``variant``, ``device_map``, components to replace, ...).
        Weights are read from safetensors only, and no code of the folder is run, whatever is trusted.
        ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads it too, by the folder's ``pipeline.py``,
        without the checks that are made here.

        Raises:
            UserError: no such model, the Hub can't be reached, or the folder lacks a file, is damaged, holds a pickle.
        """
        kwargs = safe_arguments(kwargs)
        if not is_accelerate_available():  # diffusers would fall back to this, with advice on the terminal
            kwargs.setdefault("low_cpu_mem_usage", False)
        name = str(pretrained_model_name_or_path)
        folder = resolve_model(name)
        if isinstance(folder, str):
            folder = download(super().download, folder, kwargs)  # type: ignore[misc]
        check_folder(folder, "MultimodalDiTPipeline", passed=kwargs)
        own = {"transformer", "vae"} - set(kwargs)
        if kwargs.get("device_map") is None:  # else diffusers places them, and loads them too
            kwargs |= load_optional(folder, kwargs)
        with naming_model(name):
            pipeline: MultimodalDiTPipeline = super().from_pretrained(str(folder), **kwargs)  # type: ignore[misc]
        for component in own:
            refuse_non_finite(getattr(pipeline, component), folder / component)
        pipeline.register_to_config(_name_or_path=name)
        pipeline.photographs = saw_photographs(folder)
        return pipeline

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save as diffusers does, always as safetensors: pickled weights could not be loaded again.

        Writes a model card too, unless the folder has one. Takes diffusers' keyword arguments (``variant``,
        ``max_shard_size``, ``push_to_hub=True`` with ``repo_id``, ...).

        Raises:
            UserError: LoRA weights are loaded: fuse and unload them first, or save them alone.
        """
        self.refuse_adapters()  # type: ignore[attr-defined]
        if not safe_serialization:
            logger.warning("safe_serialization=False is ignored: weights are saved as safetensors")
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        push = kwargs.pop("push_to_hub", False)
        self.register_modules(**self.components)  # type: ignore[attr-defined]  # one that was set later has an entry, too
        with quiet():
            super().save_pretrained(save_directory, safe_serialization=True, **kwargs)  # type: ignore[misc]
        folder = Path(save_directory)
        share_weights(folder)
        write_card(folder, self.model_card())
        if push:
            self._push(folder, hub.pop("repo_id", folder.absolute().name), **hub)

    def save_config(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the index, ``model_index.json``, and the file by which diffusers finds this class."""
        super().save_config(save_directory, **kwargs)  # type: ignore[misc]
        folder = Path(save_directory)
        index = read_object(folder / INDEX)
        write_json(folder / INDEX, {**index, "_class_name": [Path(CODE).stem, type(self).__name__]})
        write_code(folder)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
        """Read an index for diffusers; what it says about ``pipeline.py`` is for ``DiffusionPipeline`` alone.

        ``options``: older versions of diffusers name archives here.
        """
        values = super()._dict_from_json_file(json_file, **options)  # type: ignore[misc]
        if isinstance(values.get("_class_name"), list):
            values["_class_name"] = cls.__name__
        return values

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> Any:
        """Save, and upload to the Hub, with a model card where the repository has none; arguments as in diffusers."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / repo_id.split("/")[-1]
            self.save_pretrained(folder, safe_serialization, variant=variant)
            return self._push(
                folder, repo_id, commit_message, private=private, token=token, create_pr=create_pr, subfolder=subfolder
            )

    def _push(
        self,
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        *,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> Any:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = f"{subfolder}/{CARD}" if subfolder else CARD
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            ignore_patterns=[CARD] if api.file_exists(repo_id, card) else None,
        )

    def model_card(self) -> str:
        """Text of a model card: what the model is, as far as its configuration says."""
        config = self.transformer.config
        height, width = self.native_shape
        million = sum(parameter.numel() for parameter in self.transformer.parameters()) / 1e6
        facts = {
            "transformer": f"width {config.hidden_size}, depth {config.depth}, {config.num_heads} heads, "
            f"{million:.1f} M parameters, predicts the {'velocity' if config.prediction == 'velocity' else 'clean latent'}",
            "size in pixels": self.native_size if height == width else f"{height} x {width} (height x width)",
            "conditioner": config.conditioner,
            "components": ", ".join(f"{name} ({type(part).__name__})" for name, part in self.components.items()),
            "defaults": self.defaults.described(),  # type: ignore[attr-defined]
        }
        return model_card(
            self._modalities,
            self._id2label,
            facts,
            prompts=self.text_encoder is not None,
            photographs=self.photographs,
        )


_HUB = ("repo_id", "commit_message", "private", "token", "create_pr")
