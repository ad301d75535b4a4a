"""The capture of a diffusers pipeline: its scheduler and network are listened to, and nothing of theirs is changed.

``scheduler.step`` and ``scheduler.set_timesteps`` are replaced on the instance while the block runs, and the network
gets a forward hook. Both call what was there and hand on its result; a mistake of ours is noted, never raised in the
user's loop.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.hooks.frames import Frame, HookError, check_scheduler, frame_of
from bench.hooks.loops import Ask, Loop, Take, start_scale
from bench.hooks.real_data import RealData, rows_of
from bench.runtime.errors import reason

_NETWORKS = ("unet", "transformer")
_PATCHED = ("step", "set_timesteps")
_MARK = "is_recorder"  # on what listens to a scheduler or network while it is recorded
_NEAR = 1e-3  # of timesteps


@dataclass(frozen=True)
class NetworkCall:
    """A call of the network: its arguments by name, and what it returned."""

    arguments: dict[str, Any]
    output: Tensor

    @property
    def state_name(self) -> str:
        """Return the name of the first argument, which is the state."""
        return next(iter(self.arguments))

    @property
    def batch(self) -> int:
        """Return the images of the call."""
        return len(self.arguments[self.state_name])


class _Observed:
    """A method that is listened to; a deep copy of its object has the plain method."""

    def __init__(self, method: Callable[..., Any], observe: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)
        self._method, self._observe = method, observe
        setattr(self, _MARK, True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._observe(self._method, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._method, memo)


class Capture:
    """Turns a pipeline's own loop into typed steps.

    Args:
        pipe: a diffusers pipeline.
        begin: is called before the first step, with the loop and its first state.
        take: is called with each step, see :meth:`bench.hooks.record.Log.take`.

    Raises:
        HookError: no pipeline, a scheduler of another kind, or one that is recorded already.
    """

    def __init__(self, pipe: Any, begin: Callable[[Loop, Tensor], None], take: Take) -> None:
        network = next((getattr(pipe, name) for name in _NETWORKS if getattr(pipe, name, None) is not None), None)
        scheduler: Any = getattr(pipe, "scheduler", None)
        if not isinstance(network, nn.Module) or not hasattr(scheduler, "step"):
            raise HookError(
                f"{type(pipe).__name__} is no pipeline with a scheduler and a unet or transformer; leave it out and"
                " call log.step(...) or pass log.callback in a loop of your own"
            )
        check_scheduler(scheduler)
        if _is_recorded(scheduler, network):
            raise HookError("this pipeline is being recorded already; end the outer block first")
        self.pipe, self.network, self.scheduler = pipe, network, scheduler
        self.begin, self.take = begin, take
        self.loop: Loop | None = None
        self.first_call: NetworkCall | None = None
        self.problem: str | None = None
        self.samples = self.images = 0  # of all walks, and of one
        self.weights: list[Tensor] = []  # of guidance, at each call of the first walk
        self.dtype, self.channels = torch.float32, 0
        self._calls: deque[NetworkCall] = deque(maxlen=2)
        self._position = 0  # of the next call
        self._doubled = False
        self._untouched: Any = None  # the scheduler before the first step

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen while the block runs; whatever ends it, everything is as it was before."""
        methods = {name: getattr(self.scheduler, name) for name in _PATCHED}
        own = {name: self.scheduler.__dict__[name] for name in _PATCHED if name in self.scheduler.__dict__}
        stop = _listen(self.network, self._hear)
        try:
            for name, observed in (("step", self._step), ("set_timesteps", self._set_timesteps)):
                setattr(self.scheduler, name, _Observed(methods[name], observed))
            yield
        finally:
            for name in _PATCHED:
                self.scheduler.__dict__.pop(name, None)
            self.scheduler.__dict__.update(own)
            stop()

    def check(self) -> Loop:
        """Return the loop that was recorded.

        Raises:
            HookError: none was, or it was not one whole loop.
        """
        name = type(self.scheduler).__name__
        if self.problem is None and self.pipe.scheduler is not self.scheduler:
            self.problem = "the pipeline got another scheduler in the block; give each scheduler a block of its own"
        if self.problem is None and self.loop is None:
            self.problem = (
                f"the pipeline never called step of its {name} in the block: run it there, or call log.step(...) in a"
                " loop of your own"
            )
        if self.problem is None and self._position:
            self._stopped()
        if self.problem is not None or self.loop is None:
            raise HookError(self.problem)
        return self.loop

    def _stopped(self) -> None:
        assert self.loop is not None  # a walk is under way
        count = len(self.loop.frame.calls)
        self.problem = f"a loop ended after {self._position} of its {count} calls; record whole loops"

    def _hear(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Note a call of the network."""
        with self._noted():
            result = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            forward = getattr(self.network, "_orig_mod", self.network).forward
            names = inspect.signature(forward).bind(*args, **kwargs).arguments
            self._calls.append(NetworkCall(dict(names), result))

    def _set_timesteps(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if self._position and self.problem is None:
            self._stopped()
        self._calls.clear()
        return result

    def _step(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._noted():
            if not self._position and self.problem is None:
                self._untouched = copy.copy(self.scheduler)
                for name in _PATCHED:
                    del self._untouched.__dict__[name]
                self._untouched = copy.deepcopy(self._untouched)
        result = method(*args, **kwargs)
        with self._noted():
            bound = dict(inspect.signature(method).bind(*args, **kwargs).arguments)
            output, t, x = (bound.pop(name) for name in ("model_output", "timestep", "sample"))
            for name in ("generator", "return_dict", "variance_noise"):
                bound.pop(name, None)
            x_next = result[0] if isinstance(result, tuple) else result.prev_sample
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                self._observe(output, t, x, x_next, bound)
        return result

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Do something whose first error becomes the problem; whatever it is, the user's loop goes on."""
        try:
            yield
        except Exception as error:
            problem = str(error) if isinstance(error, HookError) else f"recording failed: {reason(error)}"
            self.problem = self.problem or problem

    def _observe(self, output: Tensor, t: Any, x: Tensor, x_next: Tensor, arguments: dict[str, Any]) -> None:
        if self.problem is not None:
            return
        if not self._position:
            self._begin_walk(output, t, x, arguments)
        assert self.loop is not None  # it has begun
        images = len(x) // 2 if self._doubled else len(x)
        if images != self.images:
            raise HookError("the number of images changed within a loop; record one loop at a time")
        k, frame = self._position, self.loop.frame
        output = output[:images]
        raw, plain = self._answers(output, images)
        self._position = (k + 1) % len(frame.calls)
        scale = None if k else start_scale(self.loop.scheduler)
        self.take(self.loop.step(k, x[:images], x_next[:images], output, plain, raw=raw), scale, not self._position)
        self._calls.clear()
        self.samples += images if not self._position else 0

    def _begin_walk(self, output: Tensor, t: Any, x: Tensor, arguments: dict[str, Any]) -> None:
        """Find the loop's place among the timesteps; later walks must be at the same levels."""
        if x.ndim != 4:
            raise HookError(f"the loop's states are {tuple(x.shape)}; states [B, C, H, W] can be recorded")
        frame, offset = _from_first(frame_of(self._untouched), float(t))
        call = self._calls[-1] if self._calls else None
        halves = x.chunk(2)
        self._doubled = (
            call is not None and call.batch == len(x) and len(x) % 2 == 0 and bool(torch.equal(halves[0], halves[-1]))
        )  # DiT's pipeline steps both halves of a guided batch
        self.images = len(x) // 2 if self._doubled else len(x)
        if self.loop is None:
            self.loop = Loop(self._untouched, frame, offset, arguments, call is None or not _is_seen(call, x))
            self.first_call, self.dtype, self.channels = call, x.dtype, output.shape[1]
            self.begin(self.loop, x[: self.images])
        elif frame != self.loop.frame:
            raise HookError("two loops in the block have different levels; record each in a block of its own")

    def _answers(self, output: Tensor, images: int) -> tuple[Tensor | None, Tensor | None]:
        """Return what the network said, and under guidance what it said with its condition alone; None for neither.

        A guided output is u + w (c - u) with w > 1. Of the two answers c is the one with the larger weight.
        """
        outputs = [call.output for call in self._calls]
        if len(outputs) == 1 and len(outputs[0]) == 2 * images:
            outputs = list(outputs[0].chunk(2))
        if any(len(answer) != images for answer in outputs) or not outputs:
            return None, None
        if len(outputs) == 1:
            return (outputs[0] if outputs[0].shape == output.shape else None), None
        first, second = (answer[:, : output.shape[1]].float() for answer in outputs)
        difference = second - first
        size = difference.square().sum()
        weight = ((output.float() - first) * difference).sum() / size.clamp(min=torch.finfo(size.dtype).tiny)
        if not self.samples:
            self.weights.append(torch.maximum(weight, 1 - weight))
        return None, torch.where(weight > 0.5, second, first)

    def ask(self, real: RealData, rows: slice, guidance: float | None) -> Ask:
        """Return the pipeline's network, asked about some real images with their conditions.

        Args:
            real: the data.
            rows: the images.
            guidance: weight of u + w (c - u), None without guidance.

        Raises:
            HookError: the loop never called its network, asked it at other times, or conditions are missing.
        """
        call = self.first_call
        if call is None or self.loop is None:
            raise HookError("the loop never called the pipeline's own network")
        asked = call.arguments.get("timestep")
        if not isinstance(asked, Tensor | float | int) or abs(_number(asked) - self.loop.frame.times[0]) > _NEAR:
            raise HookError("the network is asked at another time than its scheduler's")
        if guidance is not None and real.without is None:
            raise HookError("the loop is guided; give real=(latents, conditions, conditions for none)")
        plain = self._bound(call, real.conditions, rows)
        without = None if guidance is None else self._bound(call, real.without or {}, rows)

        def network(x: Tensor, scaled: Tensor, t: Any, k: int) -> tuple[Tensor, Tensor | None]:
            said = plain(scaled, t)
            if without is None or guidance is None:
                return said, None
            none = without(scaled, t)
            return none + guidance * (said - none), said

        return network

    def _bound(self, call: NetworkCall, conditions: Mapping[str, Any], rows: slice) -> Callable[[Tensor, Any], Tensor]:
        """Return the network under some conditions, as a function of a scaled state and a timestep."""
        state, asked = call.arguments[call.state_name], call.arguments["timestep"]
        given = rows_of(conditions, rows, state.device)
        template = _filled(call.arguments, given, call.batch, skipped=(call.state_name, "timestep"))

        def network(scaled: Tensor, t: Any) -> Tensor:
            time = _alike(asked, t, len(scaled), scaled.device)
            result = self.network(**{**template, call.state_name: scaled.to(state.dtype), "timestep": time})
            answer: Tensor = result[0] if isinstance(result, tuple) else result.sample
            return answer[:, : self.channels]

        return network


def _is_recorded(scheduler: Any, network: nn.Module) -> bool:
    """Tell whether another capture listens to either."""
    listeners = (
        scheduler.__dict__.get("step"), network.__dict__.get("_compiled_call_impl"), *network._forward_hooks.values()
    )  # fmt: skip
    return any(getattr(listener, _MARK, False) for listener in listeners)


def _is_seen(call: NetworkCall, x: Tensor) -> bool:
    """Tell whether the network saw the state as it is, which schedulers of alpha = 1 would have scaled."""
    seen = call.arguments[call.state_name]
    return seen.shape[1:] == x.shape[1:] and bool(torch.equal(seen[: len(x)], x.to(seen.dtype)))


def _number(value: Any) -> float:
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def _alike(template: Any, t: Any, images: int, device: torch.device) -> Any:
    """Return a timestep in the form that the pipeline gave it in: a number, a scalar tensor or one for each image."""
    if not isinstance(template, Tensor):
        return t
    time = torch.as_tensor(t, device=device).to(template.dtype)
    return time if template.ndim == 0 else time.expand(images)


def _filled(
    arguments: Mapping[str, Any], given: Mapping[str, Any], batch: int, skipped: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a call's arguments with the conditions that are given in their place.

    Raises:
        HookError: an argument of the batch has no condition.
    """
    filled: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in skipped:
            continue
        if isinstance(value, Mapping):
            filled[name] = _filled(value, given.get(name, {}), batch)
        elif name in given:
            like = value.dtype if isinstance(value, Tensor) else given[name].dtype
            filled[name] = given[name].to(like)
        elif isinstance(value, Tensor) and value.ndim and len(value) == batch:
            raise HookError(f"the network needs {name!r} for real data; give real=(latents, {{{name!r}: ...}})")
        else:
            filled[name] = value
    return {**filled, **{name: value for name, value in given.items() if name not in filled}}


def _from_first(frame: Frame, t: float) -> tuple[Frame, int]:
    """Return the part of a frame that begins at a timestep, and how many calls are left out before it."""
    offset = next((k for k, time in enumerate(frame.times) if abs(time - t) < _NEAR), None)
    if offset is None or frame.calls[offset].stage:
        raise HookError(
            f"the loop begins at timestep {t:g}, which is none of its scheduler's; call set_timesteps first"
        )
    return replace(frame, calls=frame.calls[offset:], times=frame.times[offset:]), offset


def _listen(network: nn.Module, hear: Callable[..., None]) -> Callable[[], None]:
    """Have every call of a network heard; return what ends that.

    A network compiled in place runs its hooks within the compiled code, so its compiled call is wrapped instead.
    """
    compiled = network.__dict__.get("_compiled_call_impl")
    if compiled is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            hear(args, kwargs, output)

        setattr(hook, _MARK, True)
        return network.register_forward_hook(hook, with_kwargs=True).remove

    def call(*args: Any, **kwargs: Any) -> Any:
        output = compiled(*args, **kwargs)
        hear(args, kwargs, output)
        return output

    setattr(call, _MARK, True)
    network._compiled_call_impl = call
    return lambda: setattr(network, "_compiled_call_impl", compiled)
