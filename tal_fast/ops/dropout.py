# SPDX-License-Identifier: Apache-2.0
"""Dropout without a stored mask, fused with the step before or after it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tal_fast.ops.arguments import check_tensors
from tal_fast.ops.registration import Tangents, register_autograd, register_no_flops

__all__ = ["dropout"]


def dropout(
    x: Tensor,
    p: float = 0.1,
    training: bool = True,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Zeroes elements with probability ``p`` and scales the others by 1 / (1 - p).

    Srivastava et al., JMLR 2014. The mask is a function of one seed and of the element's index: it
    is drawn again in the backward instead of stored, and is the same on a CPU, for any number of
    threads, and on a GPU. The seed is drawn from torch's CPU generator, which costs a GPU no
    synchronisation. While a CUDA graph is captured it is drawn from the generator of the GPU
    instead, into a tensor that the kernels read, so that every replay draws a new mask (a number
    would be frozen into the graph). On other devices, on a GPU for which the library has no kernels
    and under ``torch.compile`` dropout is composed of torch's own ops.

    Args:
        x: ``Tensor[...]`` float64, float32, float16 or bfloat16.
        p: probability of zeroing, in [0, 1].
        training: false makes it the identity (with ``relu`` or ``residual`` still applied).
        relu: apply max(x, 0) first, in the same pass.
        residual: ``Tensor`` of x's shape, added to the result in the same pass.

    Returns:
        ``Tensor[...]`` of x's shape and dtype (the wider one's with a residual of another dtype).
        Differentiable for x and residual any number of times, in both modes.

    Raises:
        TypeError: ``x`` or ``residual`` is no tensor, ``p`` no number, or a flag a tensor.
        RuntimeError: ``p`` is out of range, shapes differ, or relu and residual are both given.

    Example:
        >>> import torch
        >>> from tal_fast import ops
        >>> x = torch.tensor([-1.0, 2.0])
        >>> ops.dropout(x, 0.5, training=False, relu=True)
        tensor([0., 2.])
        >>> bool(ops.dropout(torch.ones(1000), 0.5).eq(0).any())
        True
    """
    check_tensors("dropout", x=x, residual=residual, optional="residual")
    _check_numbers(p, training=training, relu=relu)
    if relu and residual is not None:
        raise RuntimeError("dropout: expected relu or residual, got both")
    native = training and p > 0 and not torch.compiler.is_compiling() and _has_kernel(x)
    if native and (residual is None or residual.dtype == x.dtype):
        seed, device_seed = _draw_seed(x)
        return _op(x, p, seed, relu, residual, device_seed)
    if native and residual is not None:
        return residual + dropout(x, p)
    if relu:
        x = F.relu(x)
    if training and p > 0:
        x = F.dropout(x, p)
    return x if residual is None else residual + x


def _check_numbers(p: object, **flags: object) -> None:
    if isinstance(p, Tensor) or not hasattr(p, "__float__"):
        raise TypeError(f"dropout: expected p to be a number, got {type(p).__name__}")
    for name, flag in flags.items():
        if isinstance(flag, Tensor):
            raise TypeError(f"dropout: expected {name} to be True or False, got a Tensor")


def _has_kernel(x: Tensor) -> bool:
    return x.is_cpu or _device_has_kernel(x.device.type)


@functools.cache
def _device_has_kernel(device: str) -> bool:
    # On meta, where nothing is computed, what other devices would run is what is to be seen.
    return device in ("cuda", "meta") and torch._C._dispatch_has_kernel_for_dispatch_key(
        "tal_fast::dropout", torch._C._dispatch_key_for_device(device)
    )


def _draw_seed(x: Tensor) -> tuple[int, Tensor | None]:
    """Returns the two parts of a seed: a number, and a tensor for what runs again and again."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return 0, torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)
    return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")), None


@torch.library.register_fake("tal_fast::dropout")
def _forward_fake(
    x: Tensor,
    p: float,
    seed: int,
    relu: bool = False,
    residual: Tensor | None = None,
    device_seed: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("tal_fast::dropout_backward")
def _backward_fake(
    grad: Tensor, out: Tensor | None, p: float, seed: int, device_seed: Tensor | None = None
) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, ctx.seed, relu, residual, device_seed = inputs
    ctx.has_residual = residual is not None
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(output if relu else None, device_seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = None
    if ctx.needs_input_grad[0]:
        out, device_seed = ctx.saved_tensors
        grad_x = _op_backward(grad, out, ctx.p, ctx.seed, device_seed)
    # The residual's gradient is the incoming one, as it is.
    grad_residual = grad if ctx.has_residual and ctx.needs_input_grad[4] else None
    return grad_x, None, None, None, grad_residual, None


def _jvp(
    output: Tensor,
    tangents: Tangents,
    x: Tensor,
    p: float,
    seed: int,
    relu: bool = False,
    residual: Tensor | None = None,
    device_seed: Tensor | None = None,
) -> Tensor | None:
    # The mask multiplies element by element, so tangents pass it as gradients do.
    of_x, of_residual = tangents[0], tangents[4] if len(tangents) > 4 else None
    if of_x is None:
        return of_residual
    out = output if relu else None
    tangent: Tensor = _op_backward(of_x, out, p, seed, device_seed)
    return tangent if of_residual is None else tangent + of_residual


def _setup_second_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, out, ctx.p, ctx.seed, device_seed = inputs
    ctx.save_for_backward(out, device_seed)


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in the gradient, and its own transpose.
    out, device_seed = ctx.saved_tensors
    grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_grad = _op_backward(grad, out, ctx.p, ctx.seed, device_seed)
    return grad_grad, None, None, None, None


def _backward_jvp(
    output: Tensor,
    tangents: Tangents,
    grad: Tensor,
    out: Tensor | None,
    p: float,
    seed: int,
    device_seed: Tensor | None = None,
) -> Tensor | None:
    if tangents[0] is None:  # out says only where it is 0
        return None
    return _op_backward(tangents[0], out, p, seed, device_seed)


_op = register_autograd("dropout", _backward, setup_context=_setup_context, jvp=_jvp)
_op_backward = register_autograd(
    "dropout_backward", _second_backward, setup_context=_setup_second_context, jvp=_backward_jvp
)
register_no_flops("dropout", "dropout_backward")
