"""Structured channel pruning with torch-pruning, only where a channel can really go."""

import copy

import _conversion as tool
import _torch_model
import torch
import torch_pruning as tp
from _torch_train import say
from torch import nn

_TAYLOR_BATCHES = 10


def prune(model, trainer, step, shapes, label):
    """Remove `ratio` of the channels in `iterations` rounds, each followed by its share of the epochs."""
    example = _example(shapes)
    rigid = rigid_layers(model, shapes)
    whole = {name: layer.weight.shape[0] for name, layer in _torch_model.layers(model)}
    free = [name for name in whole if name not in rigid]
    if not free:
        raise tool.Refusal(
            f"{label}: no layer can lose channels",
            "its shapes are fixed in the graph; distil a smaller model",
        )
    importance = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
    }[step["criterion"]]()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance,
        pruning_ratio=step["ratio"],
        iterative_steps=step["iterations"],
        ignored_layers=[model.get_submodule(name) for name in rigid],
        round_to=step["round_to"] or None,
    )
    for number in range(step["iterations"]):
        if step["criterion"] == "taylor":
            trainer.gradients(model, step, _TAYLOR_BATCHES, label)
        pruner.step()
        model.zero_grad()
        here = (
            step["epochs"] * (number + 1) // step["iterations"]
            - step["epochs"] * number // step["iterations"]
        )
        say(f"{label}: round {number + 1} of {step['iterations']}, {_channels(model)} channels left")
        trainer.fit(model, step, here, label)
    left = {name: layer.weight.shape[0] for name, layer in _torch_model.layers(model)}
    gone = {name: [whole[name], left[name]] for name in left if left[name] != whole[name]}
    if not gone:
        hint = "raise ratio, or lower round_to"
        raise tool.Refusal(f"{label}: no channel was removed", hint)
    return {"channels": gone, "rigid": sorted(rigid)}


def rigid_layers(model, shapes):
    """Names of layers whose output channels must stay.

    A channel may go where removing it gives exactly what zeroing it gives. That fails for the model's own
    outputs, and where the graph fixes shapes or shifts channels (zero-padded shortcuts, for one).
    """
    example = _example(shapes)
    names = [name for name, _ in _torch_model.layers(model)]
    judged = {}
    for name in names:
        if name not in judged:
            members, good = _trial(model, name, example)
            judged.update(dict.fromkeys(members, good))
    return {name for name in names if not judged[name]}


def _trial(model, name, example):
    """Layers that lose channels together with `name`, and whether the model answers as if they were zero."""
    smaller, zeroed = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    layer = smaller.get_submodule(name)
    count = layer.weight.shape[0]
    if count < 2:
        return [name], False
    # From several places: a shift of channels shows only where what lies between is kept.
    gone = sorted({0, count // 2, count - 1}) if count > 3 else [0]
    try:
        graph = tp.DependencyGraph().build_dependency(smaller, example)
        function = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, function, gone)
        known = {module: place for place, module in smaller.named_modules()}
        members = [name]
        with torch.no_grad():
            for dependency, places in group:
                module = dependency.layer
                if module in known and graph.is_out_channel_pruning_fn(dependency.handler):
                    _zero(zeroed.get_submodule(known[module]), places)
                    members.append(known[module])
            group.prune()
            have, want = smaller(*example), zeroed(*example)
    except Exception:  # shapes that do not fit any more; torch-pruning itself gives up on some graphs
        return [name], False
    same = all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(have, want, strict=True)
    )
    return members, same


def _zero(module, places):
    for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
        if isinstance(tensor, nn.Parameter):
            tensor[places] = 0.0


def _channels(model):
    return sum(layer.weight.shape[0] for _, layer in _torch_model.layers(model))


def _example(shapes):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)
