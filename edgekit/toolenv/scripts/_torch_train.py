"""The training loop: losses, augmentation, and one progress line per epoch."""

import math
import sys
import time

import _conversion as tool
import torch
from torch.nn import functional


class Trainer:
    """Trains one model after another on the same rows. Equal seeds, rows and threads give equal weights."""

    def __init__(self, options, rows, truth, validation, teacher):
        self.options = options
        self.rows, self.truth = rows, truth
        self.validation = validation  # (rows, truth) or None
        self.teacher = teacher
        self.generator = torch.Generator().manual_seed(options["seed"])
        self.deadline = time.monotonic() + options["time_limit_s"]
        self.masks = {}  # layer name -> 0 where a weight must stay zero
        self.log = []

    def fit(self, model, step, epochs, label):
        """`epochs` epochs of SGD (momentum 0.9, Nesterov), the rate falling as half a cosine to zero."""
        batches = math.ceil(len(self.truth) / self.options["batch"])
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": step["weight_decay"]}, {"params": others}]
        optimizer = torch.optim.SGD(groups, lr=step["learning_rate"], momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * batches))
        for epoch in range(1, epochs + 1):
            begin, cpu = time.monotonic(), time.process_time()
            model.train()
            total = 0.0
            for count, loss in self._batches(model, step, f"{label}, epoch {epoch}"):
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                self.hold(model)
                total += float(loss.detach()) * count
            entry = {
                "step": label,
                "epoch": epoch,
                "loss": round(total / len(self.truth), 6),
                "seconds": round(time.monotonic() - begin, 2),
                "cpu_seconds": round(time.process_time() - cpu, 2),
                **self.validate(model),
            }
            self.log.append(entry)
            figures = [f"{name} {entry[name]:.4f}" for name in ("loss", "accuracy", "error") if name in entry]
            say(f"{label}: epoch {epoch} of {epochs}, {', '.join(figures)}, {entry['seconds']:.1f} s")
        model.eval()

    def gradients(self, model, step, count, label):
        """Gradients of the loss summed over `count` batches, for criteria that read them."""
        model.eval()
        model.zero_grad()
        for number, (_, loss) in enumerate(self._batches(model, step, label)):
            if number == count:
                break
            loss.backward()

    def hold(self, model):
        """Masked weights back to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                weights(model.get_submodule(name)).mul_(mask)

    def validate(self, model):
        """Share of right classes, or the mean squared error, of the validation rows; {} without any."""
        if self.validation is None:
            return {}
        rows, truth = self.validation
        model.eval()
        size = self.options["batch"]
        with torch.no_grad():
            parts = [model(*(one[i : i + size] for one in rows))[0] for i in range(0, len(truth), size)]
        answer = torch.cat(parts)
        if truth.dtype == torch.int64:
            return {"accuracy": round(float((answer.argmax(1) == truth).double().mean()), 6)}
        return {"error": round(float(functional.mse_loss(answer.reshape(truth.shape), truth)), 6)}

    def _batches(self, model, step, label):
        """(rows, loss) of each batch, in a new random order."""
        order = torch.randperm(len(self.truth), generator=self.generator)
        for start in range(0, len(order), self.options["batch"]):
            chosen = order[start : start + self.options["batch"]]
            if len(chosen) < 2 <= len(order):
                continue  # BatchNorm cannot learn from one row
            if time.monotonic() > self.deadline:
                limit = self.options["time_limit_s"]
                hint = "raise time_limit_s, or give fewer epochs or rows"
                raise tool.Refusal(f"{label}: the time limit of {limit:g} s is spent", hint)
            rows = [one[chosen] for one in self.rows]
            rows = [augmented(rows[0], self.options["augment"], self.generator), *rows[1:]]
            loss = self._loss(model(*rows)[0], rows, self.truth[chosen], step)
            if not torch.isfinite(loss):
                hint = "lower its learning_rate; are the inputs scaled?"
                raise tool.Refusal(f"{label}: the loss is {float(loss.detach())}", hint)
            yield len(chosen), loss

    def _loss(self, answer, rows, truth, step):
        if step["loss"] == "mse":
            return functional.mse_loss(answer.reshape(truth.shape), truth)
        scores = logits(answer)
        hard = functional.cross_entropy(scores, truth)
        if step["loss"] == "cross-entropy":
            return hard
        with torch.no_grad():
            taught = logits(self.teacher(*rows)[0])
        if taught.shape != scores.shape:
            raise tool.Refusal(
                f"the teacher answers {list(taught.shape[1:])}, the model {list(scores.shape[1:])}",
                "both need the same classes in the same order",
            )
        return distillation(scores, taught, hard, step["temperature"], step["alpha"])


def distillation(scores, taught, hard, temperature, alpha):
    """alpha * T^2 * KL(teacher / T || student / T) + (1 - alpha) * cross-entropy with the labels.

    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2: T^2 keeps the gradients of both terms in
    proportion when T changes.
    """
    soft = functional.kl_div(
        functional.log_softmax(scores / temperature, 1),
        functional.log_softmax(taught / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def logits(answer):
    """Scores before softmax. Of probabilities the logarithm: it differs from them by a constant per row."""
    with torch.no_grad():
        ends = answer.min() >= 0 and bool(((answer.sum(1) - 1).abs() < 1e-4).all())
    return answer.clamp(min=1e-12).log() if ends else answer


def augmented(rows, words, generator):
    """A new tensor: mirrored left to right in half of the rows ("flip"), shifted by up to `crop` pixels each
    way with zeros at the edges. (rows, channels, height, width)."""
    count, _, height, width = rows.shape if rows.ndim == 4 else (len(rows), 0, 0, 0)
    if words["flip"]:
        mirror = torch.rand(count, generator=generator) < 0.5
        rows = torch.where(mirror[:, None, None, None], rows.flip(3), rows)
    if reach := words["crop"]:
        padded = functional.pad(rows, (reach,) * 4)
        down, right = (torch.randint(2 * reach + 1, (count, 1), generator=generator) for _ in range(2))
        y, x = torch.arange(height) + down, torch.arange(width) + right
        row = torch.arange(count)[:, None, None]
        rows = padded[row, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return rows


def weights(layer):
    """The tensor that is trained, also where a parametrization stands before it."""
    if torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations.weight.original
    return layer.weight


def say(text):
    print(f"edgekit: {text}", file=sys.stderr, flush=True)
