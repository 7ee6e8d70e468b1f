"""The pipeline's part that loads, mixes and saves LoRA weights, as diffusers' pipelines do; weights are safetensors only."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from mmdit.errors import UserError
from mmdit.models.adapters import check_weights, require_peft
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.lora_file import (
    PREFIX,
    WEIGHTS,
    adapter_settings,
    find_lora,
    plain_settings,
    read_lora,
    without_prefix,
    write_lora,
)
from mmdit.storage.weights import refuse_non_finite

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class _OfClassOrPipeline:
    """A method that is called on a pipeline, or on its class as diffusers' training scripts do; ``self`` is then None."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return functools.partial(self.function, instance)


class LoraMixin(LoraBaseMixin):
    """Base of ``MultimodalDiTPipeline``: LoRA of its transformer.

    ``set_adapters``, ``enable_lora``, ``disable_lora``, ``delete_adapters``, ``unload_lora_weights``, ``get_active_adapters`` and
    ``get_list_adapters`` are diffusers' own. Adapters belong to the pipeline, not to a call: threads that share it share them.
    """

    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]
    transformer_name: ClassVar[str] = "transformer"
    transformer: MultimodalDiT

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor], **kwargs: Any
    ) -> Any:
        """Read LoRA weights without loading them: name -> tensor, names beginning with "transformer.".

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a Hub id, or the tensors.
            kwargs: ``weight_name`` (of the file in the folder), ``subfolder``, ``return_lora_metadata=True`` (return the
                adapter's settings too), and the Hub's ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            UserError: no such file, or one that is damaged or holds no LoRA.
        """
        weights, settings, _ = _read(pretrained_model_name_or_path_or_dict, kwargs)
        weights = {f"{PREFIX}{name}": weight for name, weight in weights.items()}
        settings = None if settings is None else {f"{PREFIX}{name}": value for name, value in settings.items()}
        return (weights, settings) if kwargs.get("return_lora_metadata") else weights

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights beside the transformer's, and make them active; nothing is changed where they don't fit.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder that holds one (such as a run's ``lora/``), a
                Hub id, or tensors by name.
            adapter_name: its name, for ``set_adapters``; None = "default_0", "default_1", …
            hotswap: put them in the place of the adapter of that name.
            kwargs: ``weight_name``, ``subfolder``, and the Hub's arguments, as ``lora_state_dict`` takes them;
                ``low_cpu_mem_usage``.

        Raises:
            UserError: peft is not installed; no such file; damaged weights, or those of another model; the name is taken.
        """
        require_peft()
        weights, settings, where = _read(pretrained_model_name_or_path_or_dict, kwargs)
        ranks = check_weights(self.transformer, weights, where)
        refuse_non_finite(weights.items(), where)
        there = getattr(self.transformer, "peft_config", {})
        if adapter_name is not None and (adapter_name in there) != hotswap:
            raise UserError(
                f"adapter {adapter_name!r} is {'there already' if not hotswap else 'not there'}: give another name"
                + ("" if hotswap else ", or delete it first")
            )
        self.transformer.load_lora_adapter(
            dict(weights),
            prefix=None,
            adapter_name=adapter_name,
            metadata=adapter_settings(ranks, settings, where),
            hotswap=hotswap,
            low_cpu_mem_usage=bool(kwargs.get("low_cpu_mem_usage", False)),
            _pipeline=self,
        )

    @_OfClassOrPipeline
    def save_lora_weights(
        self: Any,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Mapping[str, Tensor] | nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        *,
        adapter_name: str | None = None,
    ) -> None:
        """Save LoRA weights as ``pytorch_lora_weights.safetensors``, with rank, alpha and targets in the file's metadata.

        Args:
            save_directory: made if missing.
            transformer_lora_layers: the weights (``peft.get_peft_model_state_dict(transformer)``); None = those of an adapter of
                the pipeline. On the class, as diffusers' training scripts call it, they must be given.
            is_main_process: False = do nothing.
            weight_name: another name of the file.
            save_function, safe_serialization: as in diffusers; only safetensors are written, so they must be left alone.
            transformer_lora_adapter_metadata: the adapter's settings, ``peft_config.to_dict()``; None = the adapter's own.
            adapter_name: of the adapter; None = the active one.

        Raises:
            UserError: no adapter, several of them, or an argument that asks for pickled weights.
        """
        if not safe_serialization or save_function is not None:
            raise UserError(
                "LoRA weights are saved as safetensors only: leave out safe_serialization and save_function"
            )
        weights, settings = transformer_lora_layers, transformer_lora_adapter_metadata
        if weights is None:
            if self is None:
                raise UserError(
                    "transformer_lora_layers is missing: call save_lora_weights on a pipeline, or give them"
                )
            weights, own = adapter_state(self.transformer, adapter_name)
            settings = own if settings is None else settings
        if isinstance(weights, nn.Module):
            weights = weights.state_dict()
        if is_main_process:
            write_lora(Path(save_directory) / (weight_name or WEIGHTS), weights, settings)

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the active adapters' updates, times ``lora_scale``, to the weights; calls are then as fast as without.

        To keep them for good: ``pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained(folder)``.

        Args:
            components: None = ["transformer"], the only one.
            lora_scale: of all of them together.
            safe_fusing: leave out an adapter that would make a weight NaN.
            adapter_names: None = the active ones.
            kwargs: of older versions of diffusers.

        Raises:
            UserError: no adapter is loaded, or peft is not installed.
        """
        require_peft()
        if not getattr(self.transformer, "peft_config", None):
            raise UserError("no LoRA is loaded: call load_lora_weights first")
        parts = ["transformer"] if components is None else components
        super().fuse_lora(parts, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Undo ``fuse_lora``, up to the rounding of a sum and a difference.

        Args:
            components: None = ["transformer"].
            kwargs: of older versions of diffusers.
        """
        require_peft()
        super().unfuse_lora(["transformer"] if components is None else components, **kwargs)

    def refuse_adapters(self) -> None:
        """Raise UserError while adapters are loaded: a folder's weights are those of its config alone."""
        if names := list(getattr(self.transformer, "peft_config", None) or {}):
            raise UserError(
                f"LoRA is loaded ({', '.join(names)}): save it alone with save_lora_weights, or make it a part of the weights "
                "with fuse_lora() and unload_lora_weights(), then save"
            )


def adapter_state(
    transformer: MultimodalDiT, adapter_name: str | None = None, weights: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of an adapter.

    Args:
        transformer: has it.
        adapter_name: None = the active one.
        weights: the transformer's state in its place, such as an average; None = its own.

    Raises:
        UserError: there is no such adapter, or several are active.
    """
    require_peft()
    from peft.utils import get_peft_model_state_dict

    configs = getattr(transformer, "peft_config", None) or {}
    if not configs:
        raise UserError("no LoRA is loaded: there is nothing to save")
    if adapter_name is None:
        active = transformer.active_adapters()
        names = [active] if isinstance(active, str) else list(active)
        if len(names) != 1:
            raise UserError(f"{len(names)} adapters are active ({', '.join(names)}): name one as adapter_name")
        adapter_name = names[0]
    if adapter_name not in configs:
        raise UserError(f"there is no adapter {adapter_name!r}: loaded are {', '.join(configs)}")
    state = None if weights is None else dict(weights)
    found = get_peft_model_state_dict(transformer, state_dict=state, adapter_name=adapter_name)
    return found, plain_settings(configs[adapter_name].to_dict())


def _read(source: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any] | None, object]:
    """Weights without the prefix, the adapter's settings (None = it names none), and what messages call them."""
    if isinstance(source, Mapping):
        return without_prefix(source), None, "the LoRA weights"
    if kwargs.get("use_safetensors") is False:
        raise UserError("use_safetensors is False: LoRA weights are read from safetensors only")
    hub = {name: kwargs[name] for name in _HUB if kwargs.get(name) is not None}
    path = find_lora(source, kwargs.get("weight_name"), kwargs.get("subfolder"), hub)
    weights, settings = read_lora(path)
    return weights, settings, path
