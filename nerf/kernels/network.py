"""Networks of sine and ReLU layers with biases: values, and a mean squared error whose gradients come with it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels.bindings import Pointers, native

MAX_NET_LAYERS = 12
ACTIVATIONS = ("linear", "relu", "sine", "sigmoid")
_P, _I, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class Layer(NamedTuple):
    """`act(omega (W h + b))`; one whose weight needs no gradient is fixed."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    activation: str  # of ACTIVATIONS
    omega: float = 1.0


class NetDesc(ctypes.Structure):
    _fields_ = [
        ("n_layers", _I),
        ("pairs", _I),
        ("n_threads", _I),
        ("dims", _I * (MAX_NET_LAYERS + 1)),
        ("activation", _I * MAX_NET_LAYERS),
        ("omega", _F * MAX_NET_LAYERS),
        ("weights", _P * MAX_NET_LAYERS),
        ("biases", _P * MAX_NET_LAYERS),
        ("grad_weights", _P * MAX_NET_LAYERS),
        ("grad_biases", _P * MAX_NET_LAYERS),
        *((name, _P) for name in ("x", "targets", "out", "grad_x")),
        ("n", ctypes.c_longlong),
        ("loss", ctypes.c_double),
    ]


def reference_forward(x: Tensor, layers: list[Layer]) -> Tensor:
    """Values [n, out] at x [n, in] in plain torch: any dtype, device and order of derivative."""
    acts = {"linear": lambda z: z, "relu": torch.relu, "sine": torch.sin, "sigmoid": torch.sigmoid}
    for weight, bias, activation, omega in layers:
        x = acts[activation](omega * torch.nn.functional.linear(x, weight, bias))
    return x


def forward(x: Tensor, layers: list[Layer], pairs: bool, native_code: bool) -> Tensor:
    """Values [n, out], without gradients. pairs: products read bfloat16 where the processor has it."""
    if not native_code:
        with torch.no_grad():
            return reference_forward(x, layers)
    out = torch.empty(len(x), layers[-1].weight.shape[0])
    p = Pointers()
    desc = _described(x, layers, pairs, p)
    desc.out = out.data_ptr()
    if len(x):
        native().nerf_network(ctypes.addressof(desc))
    return out


def mse(x: Tensor, targets: Tensor, layers: list[Layer], pairs: bool, native_code: bool) -> Tensor:
    """Mean squared error over all elements against targets [n, out]; differentiable once, in weights, biases and x."""
    if not native_code:
        return (reference_forward(x, layers) - targets).square().mean()
    flat = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    shape = [(layer.bias is not None, layer.activation, layer.omega) for layer in layers]
    return _Mse.apply(x, targets, pairs, shape, *flat)


class _Mse(torch.autograd.Function):
    """The gradients are found with the value: the activations of a block are gone when the next one begins."""

    @staticmethod
    def forward(ctx, x: Tensor, targets: Tensor, pairs: bool, shape: list, *flat: Tensor) -> Tensor:
        tensors = iter(flat)
        layers = [Layer(next(tensors), next(tensors) if biased else None, a, o) for biased, a, o in shape]
        p = Pointers()
        desc = _described(x, layers, pairs, p)
        desc.targets = p("targets", targets, (len(x), layers[-1].weight.shape[0]))
        grads: list[Tensor | None] = []
        for i, layer in enumerate(layers):
            wanted = layer.weight.requires_grad
            for name, t in (("grad_weights", layer.weight), ("grad_biases", layer.bias)):
                if t is not None:
                    grad = torch.empty(t.shape) if wanted else None
                    getattr(desc, name)[i] = 0 if grad is None else grad.data_ptr()
                    grads.append(grad)
        grad_x = torch.empty(x.shape) if ctx.needs_input_grad[0] else None
        desc.grad_x = 0 if grad_x is None else grad_x.data_ptr()
        if len(x):
            native().nerf_network(ctypes.addressof(desc))
        ctx.grads, ctx.grad_x = grads, grad_x
        return torch.tensor(desc.loss / max(targets.numel(), 1), dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        def scaled(t: Tensor | None) -> Tensor | None:  # nearly always by 1
            return t if t is None or grad == 1 else t * grad

        return scaled(ctx.grad_x), None, None, None, *(scaled(t) for t in ctx.grads)


def _described(x: Tensor, layers: list[Layer], pairs: bool, p: Pointers) -> NetDesc:
    if not 1 <= len(layers) <= MAX_NET_LAYERS:
        raise ValueError(f"layers: expected 1 to {MAX_NET_LAYERS}, got {len(layers)}")
    desc = NetDesc(len(layers), int(pairs), torch.get_num_threads())
    desc.dims[0] = n_in = layers[0].weight.shape[1]
    for i, (weight, bias, activation, omega) in enumerate(layers):
        if activation not in ACTIVATIONS:
            raise ValueError(f"layers[{i}].activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        n_out = weight.shape[0]
        desc.weights[i] = p(f"layers[{i}].weight", weight, (n_out, n_in))
        desc.biases[i] = p(f"layers[{i}].bias", bias, (n_out,))
        desc.activation[i], desc.omega[i] = ACTIVATIONS.index(activation), omega
        desc.dims[i + 1] = n_in = n_out
    desc.x, desc.n = p("x", x, (len(x), layers[0].weight.shape[1])), len(x)
    return desc
