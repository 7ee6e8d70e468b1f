"""What belongs to one call of a pipeline, so that threads can share the pipeline.

diffusers keeps the scale, the interruption and the scheduler's steps of a call on the pipeline, where a second call overwrites
them. Here each call has its own, and the pipeline shows a thread those of its own call: callbacks see and set them as usual.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn


@dataclass
class Call:
    """State of one call.

    Args:
        guidance_scale: on class and prompt; callbacks may change it.
        internal_guidance_scale: away from a middle block's prediction.
        num_timesteps: of the loop under way.
        interrupt: whether the call ends after the step under way; callbacks may set it.
        scheduler: the call's own copy, laid out for its steps; None = not yet.
    """

    guidance_scale: float = 1.0
    internal_guidance_scale: float = 1.0
    num_timesteps: int = 0
    interrupt: bool = False
    scheduler: SchedulerMixin | None = None


class Calls:
    """The calls of one pipeline, under way and last made. A copy of the pipeline begins with none."""

    def __init__(self) -> None:
        self._own = threading.local()  # .stack: calls under way in this thread, .last: the last one it made
        self._under_way: list[Call] = []
        self._last = Call()
        self._one_at_a_time = threading.RLock()

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        """Locks can't be copied."""
        return Calls, ()

    @contextmanager
    def begin(self, call: Call, *, alone: bool = False) -> Iterator[Call]:
        """Let ``call`` be this thread's; a call that a callback makes comes and goes within the outer one.

        ``alone``: wait until no other such call is under way.
        """
        with self._one_at_a_time if alone else nullcontext():
            stack = self._stack()
            stack.append(call)
            self._under_way.append(call)
            try:
                yield call
            finally:
                stack.pop()
                self._under_way[:] = [each for each in self._under_way if each is not call]
                call.scheduler = None  # its steps hold tensors
                self._own.last = self._last = call

    @property
    def own(self) -> Call | None:
        """This thread's call under way."""
        stack = self._stack()
        return stack[-1] if stack else None

    @property
    def shown(self) -> Call:
        """This thread's call under way, or the last that it made; in a thread that made none, the last of any."""
        last: Call = getattr(self._own, "last", self._last)
        return self.own or last

    def set(self, name: str, value: Any) -> None:
        """Set a field of this thread's call under way; from outside of any call, of all that are under way."""
        for call in [self.own] if self.own else [*self._under_way]:
            setattr(call, name, value)

    def _stack(self) -> list[Call]:
        stack: list[Call] = self._own.__dict__.setdefault("stack", [])
        return stack


class CallsMixin:
    """Base of ``MultimodalDiTPipeline``: diffusers' names for the state of a call."""

    _calls: Calls

    @property
    def scheduler(self) -> Any:
        """What calls copy; within a call, and so for its callbacks, the call's own copy."""
        if "scheduler" not in self.__dict__:
            raise AttributeError("scheduler")
        own = self._calls.own
        return self.__dict__["scheduler"] if own is None or own.scheduler is None else own.scheduler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        self.__dict__["scheduler"] = value  # where diffusers looks for what it registers

    @property
    def guidance_scale(self) -> float:
        """Scale of this thread's call, under way or last made; 1 = off."""
        return self._calls.shown.guidance_scale

    @property
    def internal_guidance_scale(self) -> float:
        """The same of internal guidance."""
        return self._calls.shown.internal_guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether that scale is other than 1."""
        return self.guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        """Timesteps of this thread's call, under way or last made."""
        return self._calls.shown.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call ends after the step under way; callbacks set ``_interrupt``.

        Set outside of any call, in another thread, it ends all calls that are under way.
        """
        return self._calls.shown.interrupt

    @property
    def _guidance_scale(self) -> float:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        self._calls.set("guidance_scale", value)

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._calls.set("interrupt", value)

    @property
    def _num_timesteps(self) -> int:
        return self.num_timesteps


def has_hooks(components: Iterable[Any]) -> bool:
    """Whether networks have hooks that change them while they compute: offloaded or cast weights, cached outputs.

    Such networks can't compute for two calls at once.
    """
    networks = [part for part in components if isinstance(part, nn.Module)]
    return any(map(_is_hooked, (module for network in networks for module in network.modules())))


def _is_hooked(module: nn.Module) -> bool:
    registry = module.__dict__.get("_diffusers_hook")  # of diffusers, which may be empty; the other is accelerate's
    return "_hf_hook" in module.__dict__ or bool(registry is not None and registry.hooks)
