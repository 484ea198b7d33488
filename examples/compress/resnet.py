"""ResNets for CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2) for training with `edgekit compress`.

Shortcuts without weights (option A): every second pixel, new channels filled with zeros. Parameter names are
those of the usual public checkpoints, so that these load.
"""

# mypy: ignore-errors
# (torch lives in edgekit's tool environment, not where mypy runs)

from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.grown = stride, channels - before

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.grown:
            side = self.grown // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """`blocks` per stage; (rows, 3, 32, 32) to (rows, 10) logits."""

    def __init__(self, blocks, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, channels in enumerate((width, 2 * width, 4 * width), 1):
            layers = []
            for place in range(blocks[stage - 1]):
                layers.append(Block(before, channels, 2 if stage > 1 and not place else 1))
                before = channels
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(before, 10)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))


def resnet20():
    return ResNet((3, 3, 3))


def resnet56():
    return ResNet((9, 9, 9))


def resnet16():
    """A student: resnet20 without the last block of the first and of the last stage."""
    return ResNet((2, 3, 2))
