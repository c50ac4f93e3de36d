"""Networks of sine and ReLU layers with biases: values, and a mean squared error whose gradients come with it."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerf.kernels.bindings import MAX_NET_LAYERS, NetDesc, Pointers, native

ACTIVATIONS = ("linear", "relu", "sine", "sigmoid")


class Layer(NamedTuple):
    """`act(omega (W h + b))`; one whose weight needs no gradient is fixed."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    activation: str  # of ACTIVATIONS
    omega: float = 1.0


def reference_forward(x: Tensor, layers: list[Layer]) -> Tensor:
    """Values [n, out] at x [n, in] in plain torch: any dtype, device and order of derivative."""
    acts = {"linear": lambda z: z, "relu": torch.relu, "sine": torch.sin, "sigmoid": torch.sigmoid}
    for weight, bias, activation, omega in layers:
        x = acts[activation](omega * torch.nn.functional.linear(x, weight, bias))
    return x


def forward(x: Tensor, layers: list[Layer], bf16: bool, native_code: bool) -> Tensor:
    """Values [n, out], differentiable once in weights, biases and x. bf16: products read bfloat16 where the processor
    has it."""
    if not native_code:
        return reference_forward(x, layers)
    shape, flat = _flattened(layers)
    return _Network.apply(x, bf16, shape, (), *flat)[0]


def with_tangents(
    x: Tensor, layers: list[Layer], scales: tuple[float, ...], bf16: bool, native_code: bool
) -> tuple[Tensor, Tensor]:
    """(values [n, out], derivatives [n, k, out] along the first k inputs, times their scales): both differentiable once
    in weights and biases, but not in x. Forward mode: derivatives run through the layers beside the values."""
    if len(scales) > 3 or not len(scales) <= x.shape[1] <= 4:
        raise ValueError(f"scales: expected up to 3 numbers for inputs of 1 to 4 columns, got {len(scales)}")
    if not native_code:
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            y = reference_forward(inputs, layers)
            rows = [torch.autograd.grad(y[:, c].sum(), inputs, create_graph=True)[0] for c in range(y.shape[1])]
        return y, torch.stack(rows, dim=2)[:, : len(scales)] * x.new_tensor(scales)[:, None]
    shape, flat = _flattened(layers)
    return _Network.apply(x.detach(), bf16, shape, tuple(scales), *flat)


def mse(x: Tensor, targets: Tensor, layers: list[Layer], bf16: bool, native_code: bool) -> Tensor:
    """Mean squared error over all elements against targets [n, out]; differentiable once, in weights, biases and x."""
    if not native_code:
        return (reference_forward(x, layers) - targets).square().mean()
    shape, flat = _flattened(layers)
    return _Mse.apply(x, targets, bf16, shape, *flat)


def _flattened(layers: list[Layer]) -> tuple[list, list[Tensor]]:
    """What autograd must not see, and the tensors that it must."""
    flat = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    return [(layer.bias is not None, layer.activation, layer.omega) for layer in layers], flat


def _layers(shape: list, flat: tuple[Tensor, ...]) -> list[Layer]:
    tensors = iter(flat)
    return [Layer(next(tensors), next(tensors) if biased else None, a, o) for biased, a, o in shape]


class _Mse(torch.autograd.Function):
    """The gradients are found with the value: the activations of a block are gone when the next one begins."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, bf16: bool, shape: list, *flat: Tensor) -> Tensor:
        layers, p = _layers(shape, flat), Pointers()
        desc = _described(x, layers, bf16, p)
        desc.targets = p("targets", targets, (len(x), layers[-1].weight.shape[0]))
        grads = _gradients(desc, layers)
        ctx.grad_x = _run(desc, x, ctx.needs_input_grad[0])
        ctx.grads = grads
        return torch.tensor(desc.loss / max(targets.numel(), 1), dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def scaled(t: Tensor | None) -> Tensor | None:  # nearly always by 1
            return t if t is None or grad == 1 else t * grad

        return scaled(ctx.grad_x), None, None, None, *(scaled(t) for t in ctx.grads)


class _Network(torch.autograd.Function):
    """Values and tangents; going back runs forward again, block by block."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bf16: bool, shape: list, scales: tuple[float, ...], *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        layers, p = _layers(shape, flat), Pointers()
        n_out = layers[-1].weight.shape[0]
        out, tangents = torch.empty(len(x), n_out), torch.empty(len(x), len(scales), n_out)
        desc = _described(x, layers, bf16, p, scales)
        desc.out, desc.out_tangents = out.data_ptr(), tangents.data_ptr() if scales else 0
        _run(desc, x, False)
        ctx.save_for_backward(x, *flat)
        ctx.about = bf16, shape, scales
        return out, tangents

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_tangents: Tensor) -> tuple[Tensor | None, ...]:
        x, *flat = ctx.saved_tensors
        bf16, shape, scales = ctx.about
        layers, p = _layers(shape, tuple(flat)), Pointers()
        desc = _described(x, layers, bf16, p, scales)
        n_out = layers[-1].weight.shape[0]
        desc.grad_out = p("grad_out", grad_out, (len(x), n_out))
        if scales:
            desc.grad_tangents = p("grad_tangents", grad_tangents, (len(x), len(scales), n_out))
        grads = _gradients(desc, layers)
        grad_x = _run(desc, x, ctx.needs_input_grad[0])
        return grad_x, None, None, None, *grads


def _gradients(desc: NetDesc, layers: list[Layer]) -> list[Tensor | None]:
    """Room for the gradients of all weights and biases that learn, in their order."""
    grads: list[Tensor | None] = []
    for i, layer in enumerate(layers):
        for name, t in (("grad_weights", layer.weight), ("grad_biases", layer.bias)):
            if t is not None:
                grad = torch.zeros(t.shape) if layer.weight.requires_grad else None
                getattr(desc, name)[i] = 0 if grad is None else grad.data_ptr()
                grads.append(grad)
    return grads


def _run(desc: NetDesc, x: Tensor, with_grad_x: bool) -> Tensor | None:
    grad_x = torch.empty(x.shape) if with_grad_x else None
    desc.grad_x = 0 if grad_x is None else grad_x.data_ptr()
    if len(x):
        native().nerf_network(ctypes.addressof(desc))
    return grad_x


def _described(x: Tensor, layers: list[Layer], bf16: bool, p: Pointers, scales: tuple[float, ...] = ()) -> NetDesc:
    if not 1 <= len(layers) <= MAX_NET_LAYERS:
        raise ValueError(f"layers: expected 1 to {MAX_NET_LAYERS}, got {len(layers)}")
    desc = NetDesc(len(layers), int(bf16), torch.get_num_threads())
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
    desc.n_tangents = len(scales)
    desc.tangent_scale[: len(scales)] = scales
    return desc
