"""Videos that are understood: frames stream through the model into files, and the files become videos again.

What is done of a video stays when it is interrupted, and the same command goes on: ``.progress.npz`` in its folder has the
number of the next frame and what the filter over time remembers.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.cli.common.frame_files import FrameFiles, FrameSamples
from mmdit.cli.common.model import note
from mmdit.cli.common.output import SampleWriter
from mmdit.cli.common.sampling import Arrays, Request, SamplingRun, run_pipeline
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.modalities.resizing import antialiased
from mmdit.names import METADATA
from mmdit.pipelines.video import Steady
from mmdit.progress import Progress
from mmdit.storage.digests import digest_json
from mmdit.storage.files import write_atomically
from mmdit.storage.json_object import write_json
from mmdit.storage.versions import versions
from mmdit.video.frames import Frame, Video
from mmdit.video.writer import SUFFIX, VideoWriter

PROGRESS = ".progress.npz"


@dataclass(frozen=True)
class VideoOptions:
    """How videos are understood, beside what a ``SamplingRun`` knows.

    Args:
        temporal: see ``mmdit.pipelines.video``.
        match_input_size: whether maps have the size of the frames.
        frame_files: whether the files of each frame are kept.
        inputs: further arguments of the pipeline, such as ``ensemble_size``, of which ``recorded`` decide the result.
    """

    temporal: float
    match_input_size: bool
    frame_files: bool
    inputs: Mapping[str, Any]
    recorded: Mapping[str, Any]


class VideoJob:
    """One video, and the folder of its results.

    Args:
        run: the model and its settings.
        video: what is read.
        folder: of the results.
        seed: of the noise, the same for all frames.
        options: see ``VideoOptions``.

    Raises:
        UserError: the folder holds something else, can't be written, or has no room.
    """

    def __init__(self, run: SamplingRun, video: Video, folder: Path, seed: int, options: VideoOptions) -> None:
        self.run, self.video, self.folder, self.seed, self.options = run, video, folder, seed, options
        recorded = {"match_input_size": options.match_input_size, "temporal": options.temporal, **options.recorded}
        source = {IMAGE: {"path": str(video.path), "sha256": video.digest()}}
        self.request: Request = {**run.request(seed), "conditions": source, **recorded, "frame_rate": float(video.rate)}
        self.size = video.size if options.match_input_size else run.native
        writer = SampleWriter(folder, run.pipe.modalities, run.writer.overwrite, run.writer.exr)
        self.files: FrameFiles = (FrameSamples if options.frame_files else FrameFiles)(writer)
        self.videos = {name: folder / f"{name}{SUFFIX}" for name in run.pipe.modalities if name != IMAGE}
        known = {METADATA, PROGRESS, self.files.HIDDEN, *(path.name for path in self.videos.values())}
        for entry in sorted(folder.iterdir()):
            if not (entry.name in known or entry.name.endswith(".tmp") or (entry.is_dir() and entry.name.isdecimal())):
                raise UserError(
                    f"{folder}: holds {entry.name!r}, which is not a video's result: choose another --output"
                )
        self.files.check(self.request, (video.num_frames or 1) * self.size[0] * self.size[1])

    def finish(self) -> None:
        """Understand the frames that lack, write the videos, and print their paths.

        Raises:
            UserError: a result can't be written.
        """
        steady = Steady(self.run.pipe.codecs, self.options.temporal)
        start = self._resume(steady)
        if start:
            note(f"{self.folder}: goes on after {start} frames that are there")
        count = self._understand(steady, start)
        self._write_videos(count)
        self.files.close()
        (self.folder / PROGRESS).unlink(missing_ok=True)
        # Frames of an earlier, longer result, which this one replaces.
        self._remove_frames_from(count if self.options.frame_files or not self.run.writer.overwrite else 0)
        for path in self.videos.values():
            print(path, flush=True)

    def _understand(self, steady: Steady, start: int) -> int:
        """Understand frames from ``start`` on; returns how many there are in all."""
        frames = enumerate(self.video.frames())
        for _ in islice(frames, start):
            pass
        count = start
        total = None if self.video.num_frames is None else max(0, self.video.num_frames - start)
        shown = total is None or total > self.run.batch_size
        with Progress(total, self.run.command, "frame", enabled=shown) as progress:
            while batch := list(islice(frames, self.run.batch_size)):
                pictures = [self.run.to_native(frame.pixels) for _, frame in batch]
                outputs = run_pipeline(
                    self.run.pipe,
                    [self.seed] * len(batch),
                    self.run.num_inference_steps,
                    self.run.guidance_scale,
                    conditions={IMAGE: pictures},
                    **self.run.internal,
                    **self.options.inputs,
                )
                for (number, frame), (arrays, spread) in zip(batch, outputs, strict=True):
                    self._write_frame(number, frame, steady(arrays), spread)
                    progress.update()
                count = batch[-1][0] + 1
                self._remember(steady, count)
        return count

    def _write_frame(self, number: int, frame: Frame, arrays: Arrays, spread: Arrays) -> None:
        if self.options.match_input_size:
            arrays = self.run.at_size_of(frame.pixels, arrays)
        spread = {name: antialiased(array, *arrays[IMAGE].shape[:2]) for name, array in spread.items()}
        place = {"number": number, "time": float(frame.time), "duration": float(frame.duration)}
        self.files.write(number, arrays, {**self.request, "frame": place}, spread)

    def _write_videos(self, count: int) -> None:
        times = [self.files.place(number) for number in range(count)]
        length = Fraction(times[-1]["time"] + times[-1]["duration"])
        rate = (count / length).limit_denominator(1001) if length else self.video.rate
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(VideoWriter.open(path, self.size, rate)) for name, path in self.videos.items()
            }
            for number, place in enumerate(times):
                pictures = self.files.pictures(number)
                for name, writer in writers.items():
                    writer.write(pictures[name], Fraction(place["time"]), Fraction(place["duration"]))
        made = {"num_frames": count, "seconds": float(length), "versions": versions()}
        write_json(self.folder / METADATA, {**self.request, **made})

    def _remember(self, steady: Steady, count: int) -> None:
        buffer = io.BytesIO()
        known = {f"known_{name}": array for name, array in steady.known.items()}
        np.savez(buffer, count=count, request=self._identity(), **known)  # type: ignore[arg-type]
        write_atomically(self.folder / PROGRESS, buffer.getvalue())

    def _resume(self, steady: Steady) -> int:
        """How many frames are done, and what the filter knew of them; 0 where that can't be told."""
        try:
            with np.load(self.folder / PROGRESS, allow_pickle=False) as file:
                values = {name: file[name] for name in file.files}
            count, request = int(values.pop("count")), str(values.pop("request"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0
        if request != self._identity() or not all(map(self.files.has, range(count))):
            return 0
        steady.known = {name.removeprefix("known_"): array for name, array in values.items()}
        return count

    def _identity(self) -> str:
        return digest_json({name: value for name, value in self.request.items() if name != "device"})

    def _remove_frames_from(self, count: int) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name.isdecimal() and int(entry.name) >= count:
                self.files.writer.refuse_foreign(entry)
                shutil.rmtree(entry)


def understand_videos(jobs: Sequence[VideoJob]) -> list[str]:
    """Understand videos one after the other; returns what kept any from its end."""
    problems: list[str] = []
    for job in jobs:
        job.finish()
        if job.video.problem:
            problems.append(f"{job.video.path}: {job.video.problem}")
    return problems


def refuse_cut_off(problems: Sequence[str], output: Path) -> None:
    """Raise UserError at the end of a run where a video could not be read to its end."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; the frames before are in {output}")
