"""A pipeline's networks as ONNX graphs: one step of the transformer, the VAE's encoder and its decoder; each is compared.

B samples (any number), M modalities, C latent channels, h w latent size, H W pixels, L tokens of a prompt, D width.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError, first_line
from mmdit.flow.guidance import internally_guided
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.schedulers import jumps
from mmdit.models.blocks import BLOCKS
from mmdit.models.prompted import PromptConditioner
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.files import writing_folder
from mmdit.storage.json_object import write_json
from mmdit.storage.versions import versions
from mmdit.task import Role

DESCRIPTION = "export.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest value: rounding in float32 is some 1e-6
_BATCHES = (1, 3)  # the graphs are compared with; they are traced with 2
_EARLIEST = 0.1  # timestep of the comparison: near 0 a velocity divides by it, and rounding with it


@dataclass(frozen=True)
class Graph:
    """One graph to export.

    Args:
        name: of its file, without suffix.
        module: what it computes.
        inputs: number of samples -> inputs of ``module`` by name.
        output: name of the output.
        dynamic: input -> dimensions that may have any size, by name; dimension 0 is B in all.
    """

    name: str
    module: nn.Module
    inputs: Callable[[int], dict[str, Tensor]]
    output: str
    dynamic: Mapping[str, Mapping[int, str]]


class LabelStep(nn.Module):
    """latents (B, M, C, h, w), timesteps (B, M), roles (B, M), class_labels (B,), -1 = none -> velocity (B, M, C, h, w).

    Of a model that learned its steps, also timesteps_next (B, M): the mean velocity to there. Of one with a head on a middle
    block, also internal_guidance_scale (B,), 1 = off.
    """

    def __init__(self, transformer: MultimodalDiT) -> None:
        super().__init__()
        self.transformer = transformer
        self.to_velocity = PREDICTIONS[transformer.config.prediction].to_velocity

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        roles: Tensor,
        class_labels: Tensor,
        timesteps_next: Tensor | None = None,
        internal_guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """The velocity dx / dt, whatever the network predicts."""
        conditioning = self.transformer.conditioner(class_labels)
        return self._velocity(latents, timesteps, roles, conditioning, timesteps_next, internal_guidance_scale)

    def _velocity(
        self,
        latents: Tensor,
        timesteps: Tensor,
        roles: Tensor,
        conditioning: Conditioning,
        timesteps_next: Tensor | None,
        internal_scale: Tensor | None,
    ) -> Tensor:
        guided = internal_scale is not None
        made = self.transformer(
            latents,
            timesteps,
            roles,
            conditioning,
            return_dict=False,
            timesteps_next=timesteps_next,
            output_internal=guided,
        )
        output = made[0]
        if internal_scale is not None:
            output = internally_guided(made[0], made[2], internal_scale[:, None, None, None, None])
        return self.to_velocity(output, latents, timesteps)


class PromptStep(LabelStep):
    """As ``LabelStep``, of an encoded prompt: vector (B, D), for blocks that attend to it tokens (B, L, D), token_mask (B, L).

    ``pipe.encode_prompt`` gives them; the encoders of prompts are not exported.
    """

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        timesteps: Tensor,
        roles: Tensor,
        vector: Tensor,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        timesteps_next: Tensor | None = None,
        internal_guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """The velocity dx / dt, whatever the network predicts."""
        conditioning = Conditioning(vector, tokens, token_mask)
        return self._velocity(latents, timesteps, roles, conditioning, timesteps_next, internal_guidance_scale)


class Encoder(nn.Module):
    """images (B, M, 3, H, W) in [-1, 1], as the codecs of the modalities make them -> latents (B, M, C, h, w), whitened."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.vae, self.codec = codec.vae, codec

    def forward(self, images: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.codec.latents_all(self.codec.encode_all(images))


class Decoder(nn.Module):
    """latents (B, M, C, h, w), whitened -> images (B, M, 3, H, W), about [-1, 1], not clipped."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.vae, self.codec = codec.vae, codec

    def forward(self, latents: Tensor) -> Tensor:
        """What the codecs of the modalities read."""
        return self.codec.decode_all(latents)


def graphs_of(pipe: MultimodalDiTPipeline) -> list[Graph]:
    """The graphs of a pipeline in float32 on the CPU, at the size that it is trained on; a model of prompts has two steps."""
    transformer, codec = pipe.transformer, LatentCodec(pipe.vae, pipe.modalities)
    m, (height, width), steps = len(pipe.modalities), pipe.native_shape, jumps(pipe.scheduler)
    latent_shape = (m, codec.latent_channels, *codec.latent_size(height, width))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def pictures(count: int) -> dict[str, Tensor]:
        return {"images": draw(count, m, 3, height, width).clamp(-1, 1)}

    def latents(count: int) -> dict[str, Tensor]:
        return {"latents": draw(count, *latent_shape)}

    def noisy(count: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        timesteps = _EARLIEST + (1 - _EARLIEST) * torch.rand(count, m, generator=generator)
        roles = torch.randint(len(Role), (count, m), generator=generator)
        return {**latents(count), "timesteps": timesteps, "roles": roles}

    def further(count: int) -> dict[str, Tensor]:
        generator, inputs = torch.Generator().manual_seed(2), {}
        if steps:
            inputs["timesteps_next"] = noisy(count)["timesteps"] * torch.rand(count, 1, generator=generator)
        if transformer.internal_head is not None:
            inputs["internal_guidance_scale"] = 1 + torch.rand(count, generator=generator)
        return inputs

    def labelled(count: int) -> dict[str, Tensor]:
        labels = torch.arange(count) % (transformer.config.num_classes + 1) - 1
        return {**noisy(count), "class_labels": labels, **further(count)}

    attends, hidden, length = BLOCKS[transformer.config.block].attends_to_prompt, transformer.config.hidden_size, 5

    def prompted(count: int) -> dict[str, Tensor]:
        inputs = {**noisy(count), "vector": draw(count, hidden)}
        if attends:
            inputs |= {"tokens": draw(count, length, hidden), "token_mask": draw(count, length) > -0.5}
        return inputs | further(count)

    steps_of = [Graph("transformer", LabelStep(transformer), labelled, "velocity", {})]
    if isinstance(transformer.conditioner, PromptConditioner):
        dynamic = {name: {1: "tokens"} for name in ("tokens", "token_mask")} if attends else {}
        steps_of.append(Graph("transformer_prompt", PromptStep(transformer), prompted, "velocity", dynamic))
    return [
        *steps_of,
        Graph("vae_encoder", Encoder(codec), pictures, "latents", {}),
        Graph("vae_decoder", Decoder(codec), latents, "images", {}),
    ]


def export_onnx(pipe: MultimodalDiTPipeline, output: Path, say: Callable[[str], None] = print) -> dict[str, float]:
    """Write ``transformer.onnx``, ``vae_encoder.onnx``, ``vae_decoder.onnx`` and ``export.json``, and compare each with PyTorch.

    A model of prompts has ``transformer_prompt.onnx`` too.

    The graphs take any number of samples, at the model's size. ``export.json`` says what inputs and outputs are, and all that a
    sampler needs besides. Large weights are beside their graph, in ``<name>.onnx.data``.

    Args:
        pipe: in float32, on the CPU.
        output: the folder; one of an earlier export is replaced, whole.
        say: gets a line for each graph, with its largest difference.

    Returns:
        Graph -> largest difference from PyTorch over its outputs, in their units.

    Raises:
        UserError: packages are missing, the folder holds something else, or a graph can't be made or computes something else.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'multimodal-dit[onnx]'")
    _refuse_foreign(output)
    differences, described = {}, {}
    with writing_folder(output) as folder:
        for graph in graphs_of(pipe):
            path = folder / f"{graph.name}.onnx"
            _export(graph, path)
            difference, largest = compare(graph, path)
            say(f"{output / path.name}: largest difference from PyTorch {difference:.1e}, values up to {largest:.3g}")
            if not difference <= TOLERANCE * max(largest, 1e-6):
                raise UserError(f"{path.name} computes something else than PyTorch: differences up to {difference:g}")
            differences[graph.name] = difference
            described[graph.name] = _describe(graph) | {"largest_difference": difference}
        write_json(folder / DESCRIPTION, _settings(pipe) | {"graphs": described})
    return differences


def compare(graph: Graph, path: Path) -> tuple[float, float]:
    """Run a file with onnxruntime on batches it was not traced with -> largest difference from PyTorch, largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    for count in _BATCHES:
        inputs = graph.inputs(count)
        with torch.no_grad():
            expected = graph.module.eval()(**inputs)
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        difference = max(difference, float((torch.from_numpy(found) - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return difference, largest


def _export(graph: Graph, path: Path) -> None:
    inputs = graph.inputs(2)
    batch = torch.export.Dim("batch")
    dynamic = {
        key: {0: batch, **{axis: torch.export.Dim(name) for axis, name in graph.dynamic.get(key, {}).items()}}
        for key in inputs
    }
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.module.eval(),
                (),
                kwargs=inputs,
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=[graph.output],
                dynamic_shapes=dynamic,
            )
            assert program is not None
            program.save(str(path))
    except UserError:
        raise
    except Exception as error:  # of whichever part of the exporter
        raise UserError(
            f"{path.name} can't be made with these versions of torch and onnx: {first_line(error)}"
        ) from error


def _refuse_foreign(output: Path) -> None:
    if not output.is_dir():
        return
    foreign = sorted(
        path.name for path in output.iterdir() if path.name != DESCRIPTION and ".onnx" not in path.suffixes
    )
    if foreign:
        raise UserError(f"{output}: holds {foreign[0]!r}, which is no file of an export: choose another --output")


def _describe(graph: Graph) -> dict[str, Any]:
    inputs = graph.inputs(1)
    names = {name: {0: "B", **graph.dynamic.get(name, {})} for name in inputs}
    return {
        "inputs": {
            name: {
                "shape": [names[name].get(axis, size) for axis, size in enumerate(value.shape)],
                "dtype": str(value.dtype).removeprefix("torch."),
            }
            for name, value in inputs.items()
        },
        "output": graph.output,
    }


def _settings(pipe: MultimodalDiTPipeline) -> dict[str, Any]:
    steps = "; the velocity is that of the whole step to timesteps_next" if jumps(pipe.scheduler) else ""
    return {
        "model": pipe.config.get("_name_or_path"),
        "modalities": {name: modality.to_dict() for name, modality in pipe.modalities.items()},
        "id2label": {str(number): name for number, name in pipe.id2label.items()},
        "roles": {role.name: int(role) for role in Role},
        "time": "0 is data, 1 is noise; x_t = (1 - t) data + t noise; an Euler step is x + (t_next - t) velocity"
        + steps,
        "defaults": {
            **asdict(pipe.defaults),
            "condition_time": 0.005,
        },
        "versions": versions((*PACKAGES, "multimodal-dit", "torch", "diffusers")),
    }
