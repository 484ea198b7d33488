"""2:4 sparsity and quantization-aware fine-tuning: weights that a later step cannot hurt."""

import _conversion as tool
import _torch_model
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

_RUNNING = 0.05
"""Weight of a new batch in the running range of activations."""


def sparsify(model, trainer, step, label):
    """The two smallest of every four weights along the input channels to zero; the zeros are held after.

    Mishra et al. 2021, arXiv:2104.08378, section 3 and 4 (prune once, then repeat the training).
    """
    taken = []
    for name, layer in _torch_model.layers(model):
        if layer.weight.shape[1] % 4 == 0 and getattr(layer, "groups", 1) == 1:
            trainer.masks[name] = two_of_four(layer.weight.detach())
            taken.append(name)
    if not taken:
        raise tool.Refusal(f"{label}: no layer has input channels in fours")
    trainer.hold(model)
    trainer.fit(model, step, step["epochs"], label)
    return {"layers": taken}


def two_of_four(weight):
    """1 for the two largest magnitudes of each four neighbours along dimension 1, else 0."""
    last = weight.movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, 4).abs()
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups).scatter_(-1, order[..., :2], 1.0)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()


def quantize(model, trainer, step, label):
    """Fine-tune with int8 in the forward pass; a float model whose weights lie on the int8 grid comes out.

    BatchNorm is folded first, for that is what the quantizers see. Gradients pass straight through the
    rounding (Jacob et al. 2018, arXiv:1712.05877, section 3; Bengio et al. 2013, arXiv:1308.3432).
    """
    model = fuse(model.eval(), no_trace=True)
    trainer.hold(model)
    hooks = []
    for _, layer in _torch_model.layers(model):
        parametrize.register_parametrization(layer, "weight", _Weight())
        hooks.append(layer.register_forward_pre_hook(_Activation()))
    trainer.fit(model, step, step["epochs"], label)
    for hook in hooks:
        hook.remove()
    for _, layer in _torch_model.layers(model):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


class _Weight(nn.Module):
    """Symmetric int8 per output channel: scale = max |w| / 127."""

    def forward(self, weight):
        peak = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12)
        zero = torch.zeros(len(peak), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, peak / 127, zero, 0, -127, 127)


class _Activation:
    """Asymmetric 8 bit per tensor, over the running range of what went in while training."""

    def __init__(self):
        self.low = self.high = None

    def __call__(self, layer, inputs):
        values = inputs[0]
        if layer.training or self.low is None:
            low, high = values.detach().min().clamp(max=0.0), values.detach().max().clamp(min=0.0)
            self.low = low if self.low is None else self.low + _RUNNING * (low - self.low)
            self.high = high if self.high is None else self.high + _RUNNING * (high - self.high)
        scale = ((self.high - self.low) / 255).clamp(min=1e-12)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return (torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255), *inputs[1:])
