# SPDX-License-Identifier: Apache-2.0
"""How the ops are registered with torch: derivatives in both modes, and autocast.

torch asks a custom op for its gradient (reverse mode) and knows nothing of its tangents (forward
mode: ``torch.func.jvp``, ``jacfwd``, ``linearize``, ``torch.autograd.forward_ad``). Left alone,
every custom op drops them, and what follows computes with a derivative of 0. Every op of this
library passes through here, so each gives the tangent or refuses to, backward ops included: those
are what a derivative of a gradient meets.

Nor does torch know how much a custom op computes: ``torch.utils.flop_counter`` counts 0. So each op
states that here, too.

A gradient registered with torch is found by way of its dispatcher, from C++ to Python and back: on
small inputs most of a call's time. So :func:`register_autograd` returns the op as a function that
everybody calls instead of the op in ``torch.ops``: where nothing but autograd asks for a call, the
same formula goes to an ``autograd.Function`` at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

__all__ = [
    "Op",
    "Tangents",
    "make_dual",
    "no_tangent",
    "refuse_derivatives",
    "register_autocast",
    "register_autograd",
    "register_flops",
    "register_no_flops",
    "register_no_second_derivative",
    "register_without_gradient",
    "unpack_dual",
]

Tangents = Sequence[Tensor | None]
"""The tangents of an op's arguments, one place per argument; None: the argument has none."""

Op = Callable[..., Any]
"""An op as a function of all its arguments in order, those with a default included."""

Jvp = Callable[..., Any]
"""``jvp(output, tangents, *arguments)`` returns the tangent of the output or of each output, None
where it is zero. At least one argument has a tangent; all arguments and the output come without."""

_jvps: dict[str, Jvp] = {}
_differentiable_once: set[str] = set()
_autocast: set[str] = set()


_PLAIN = frozenset({Tensor, torch.nn.Parameter})


class _Always:
    _current_level = 0


# Three questions of less than a tenth of a microsecond each. torch.compile enters a level without
# the counter of torch.autograd.forward_ad, so transforms and modes that trace count as well.
_transform = torch._C._functorch.maybe_current_level
_modes = torch._C._len_torch_dispatch_stack
# Should torch rename the counter, the arguments are looked at in every call.
_counter: Any = forward_ad if hasattr(forward_ad, "_current_level") else _Always()
# Of the others that may want to see a call, too.
_function_modes = torch._C._is_torch_function_mode_enabled
_jit = torch._C._is_tracing
_any_autocast = torch._C._is_any_autocast_enabled
_is_dead = getattr(torch._C._functorch, "is_dead_tensor_wrapper")  # noqa: B009 (not in its stub)
_below_autograd = torch._C._AutoDispatchBelowAutograd


def register_autograd(
    op: str,
    backward: Callable[..., Any],
    *,
    setup_context: Callable[..., Any] | None = None,
    jvp: Jvp | None = None,
) -> Op:
    """Registers the gradient of an op and, where there is one, its tangent.

    Without ``jvp`` an op whose outputs are all of integers or booleans gives no tangent, as
    ``torch.argmax`` does, and any other raises NotImplementedError for arguments that have one.

    Args:
        op: name of the op, without namespace.
        backward: see ``torch.library.register_autograd``.
        setup_context: see ``torch.library.register_autograd``.
        jvp: see :data:`Jvp`.

    Returns:
        The op; see :data:`Op`. It gives what the one in ``torch.ops`` gives, in less time.
    """
    if jvp is not None:
        _jvps[op] = jvp
    torch.library.register_autograd(
        f"tal_fast::{op}", backward, setup_context=setup_context, lib=_library
    )
    return _direct(op, backward, setup_context)


def _direct(op: str, backward: Callable[..., Any], setup_context: Callable[..., Any] | None) -> Op:
    """Returns an op whose calls meet neither Python's part of the dispatcher nor its costs.

    Only where autograd alone has to do with them: what traces, transforms, casts, counts or gives
    tangents (and tensors of other classes, which do any of that) has its say in the dispatcher.
    """
    dispatched = getattr(torch.ops.tal_fast, op).default
    native = dispatched._op
    places = [i for i, a in enumerate(dispatched._schema.arguments) if "Tensor" in str(a.type)]

    def forward(ctx: Any, *arguments: Any) -> Any:
        with _below_autograd():
            output = native(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    function: Any = type(
        f"tal_fast_{op}",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )
    # What torch.autograd.Function.apply does before is for transforms, which do not come here.
    apply = super(torch.autograd.Function, function).apply

    def call(*arguments: Any) -> Any:
        # The first question is the one that torch.compile can answer, and ends its tracing here.
        if torch.compiler.is_dynamo_compiling() or (
            _modes()
            or _transform() is not None
            or _counter._current_level >= 0
            or _function_modes()
            or _jit()
            or (op in _autocast and _any_autocast())
        ):
            return dispatched(*arguments)
        for place in places:
            tensor = arguments[place]
            if tensor is not None and (type(tensor) not in _PLAIN or _is_dead(tensor)):
                return dispatched(*arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return apply(*arguments)
        with _below_autograd():
            return native(*arguments)

    return call


def register_without_gradient(*ops: str) -> None:
    """Lets autograd pass calls of these ops on: the outputs claim no gradient.

    A registered formula would take longer than many a call does. So would one that looks for
    tangents: the public functions of such ops call :func:`refuse_derivatives`, unless all that they
    return are integers. They count no FLOPs: what compares and sorts has no products to count.
    """
    for op in ops:
        torch.library.Library.impl(_library, op, torch.library.fallthrough_kernel, "Autograd")
    register_no_flops(*ops)


def register_autocast(*ops: str) -> None:
    """Lets these ops compute and return float32 under autocast."""
    _autocast.update(ops)
    for op in ops:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"tal_fast::{op}", device, torch.float32)


def register_flops(op: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Registers how many FLOPs an op takes, two for a multiply-add, for ``FlopCounterMode``.

    The convention is torch's: products of matrices, convolutions and attention count; element-wise
    work, pooling, comparisons and sorts do not. What a backward computes anew does not, either.

    Args:
        op: name of the op, without namespace.

    Returns:
        A decorator of ``flops(*arguments, out_shape=...)``, where tensors come as their shapes.
    """
    return register_flop_formula(getattr(torch.ops.tal_fast, op))


def register_no_flops(*ops: str) -> None:
    """States that nothing of what these ops do is counted; see :func:`register_flops`."""
    for op in ops:
        register_flops(op)(_no_flops)


def _no_flops(*arguments: Any, **options: Any) -> int:
    return 0


def register_no_second_derivative(op: str) -> Op:
    """Lets ``{op}_backward`` refuse to be differentiated, in either mode, and returns it.

    Without a rule of its own it would only warn, and then give wrong second derivatives.
    """

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise _no_second_derivative(op)

    _differentiable_once.add(op)
    return register_autograd(f"{op}_backward", refuse)


def _no_second_derivative(op: str) -> NotImplementedError:
    return NotImplementedError(f"{op}: second derivatives are not implemented")


def refuse_derivatives(op: str, **tensors: Tensor | None) -> None:
    """Raises NotImplementedError if one of the arguments has a tangent; see the module.

    Also if ``torch.func`` asks for a gradient: where autograd would say that there is none, it
    takes what carries none for a constant.
    """
    transformed = not torch.compiler.is_dynamo_compiling() and _transform() is not None
    if not transformed and _counter._current_level < 0:
        return
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if transformed and _asks_for_gradient(tensor):
            raise NotImplementedError(
                f"{op} has no gradient, and torch.func asks for that of {name}: detach() it if no "
                "derivative is wanted"
            )
        if unpack_dual(tensor)[1] is not None:
            raise no_tangent(op, name)


def no_tangent(op: str, names: str) -> NotImplementedError:
    """Returns the error for arguments (``names``) whose tangent the op cannot pass on."""
    return NotImplementedError(
        f"{op} does not support forward AD (torch.func.jvp, torch.autograd.forward_ad), and "
        f"{names} has a tangent: detach() it if no derivative is wanted"
    )


def make_dual(tensor: Tensor, tangent: Tensor | None) -> Tensor:
    """Gives a tensor its tangent, if there is one, also where torch.compile traces a kernel."""
    return tensor if tangent is None else torch._VF._make_dual(tensor, tangent, level=0)


def unpack_dual(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns a tensor without its tangent, and the tangent, None where torch would ignore it."""
    if torch.compiler.is_dynamo_compiling():
        unpacked = forward_ad.unpack_dual(tensor)
        return unpacked.primal, unpacked.tangent
    primal, tangent = torch._VF._unpack_dual(_without_vmap(tensor), level=0)
    return primal, tangent if torch._C._is_fwd_grad_enabled() else None


def _asks_for_gradient(tensor: Tensor) -> bool:
    tensor = _without_vmap(tensor)
    return torch._C._functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad


def _without_vmap(tensor: Tensor) -> Tensor:
    """Returns what torch.vmap has wrapped, which hides what transforms around it follow."""
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class _Library(torch.library.Library):
    """Puts the question for tangents before the kernels for autograd that torch makes here."""

    def impl(self, op_name: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        op = getattr(torch.ops.tal_fast, op_name).default

        def kernel(keyset: Any, *arguments: Any) -> Any:
            if _counter._current_level >= 0 or _transform() is not None or _modes():
                tensors = (x for x in arguments if isinstance(x, Tensor))
                if any(unpack_dual(x)[1] is not None for x in tensors):
                    return _with_tangents(op, arguments)
            return fn(keyset, *arguments)

        return super().impl(op_name, kernel, *args, **options)


_library = _Library("tal_fast", "FRAGMENT")


def _with_tangents(op: Any, arguments: Sequence[Any]) -> Any:
    name = op._schema.name.removeprefix("tal_fast::")
    unpacked = [unpack_dual(x) if isinstance(x, Tensor) else (x, None) for x in arguments]
    primals, tangents = zip(*unpacked, strict=True)
    output = op(*primals)
    outputs = output if isinstance(output, tuple) else (output,)
    if not any(out.is_floating_point() for out in outputs):
        return output
    if name not in _jvps:
        given = zip(op._schema.arguments, tangents, strict=False)
        raise no_tangent(name, ", ".join(a.name for a, tangent in given if tangent is not None))
    found = _jvps[name](output, tangents, *primals)
    if name in _differentiable_once:
        _refuse_tangent_of_gradient(name, outputs, [x for x in arguments if isinstance(x, Tensor)])
    duals = tuple(
        make_dual(out, tangent)
        for out, tangent in zip(
            outputs, found if isinstance(output, tuple) else (found,), strict=True
        )
    )
    return duals if isinstance(output, tuple) else duals[0]


def _refuse_tangent_of_gradient(
    name: str, outputs: Sequence[Tensor], duals: Sequence[Tensor]
) -> None:
    """Refuses a gradient while the arguments that it depends on have their tangents.

    The formula for it has kept them without, so the tangent of the gradient would be missing.
    """

    def refuse(grad: Tensor) -> None:
        if any(unpack_dual(dual)[1] is not None for dual in duals):
            raise _no_second_derivative(name)

    for out in outputs:
        if out.requires_grad:
            out.register_hook(refuse)
