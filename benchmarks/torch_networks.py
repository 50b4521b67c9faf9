"""The networks of torch_peer.py: ResNet-50 or ViT-S with ASPP, in plain PyTorch. Needs torch, not torchvision.

TorchDynamo does not compile the frame of an `nn.Sequential`, whose blocks it then compiles one by one until it hits its
limit of recompilations, hence `Whole`."""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, kernel, stride=1, dilation=1):
    padding = dilation * (kernel // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1, self.conv3 = conv_bn(inputs, width, 1), conv_bn(width, width * 4, 1)
        self.conv2 = conv_bn(width, width, 3, stride, dilation)
        self.downsample = None
        if stride != 1 or inputs != width * 4:
            self.downsample = conv_bn(inputs, width * 4, 1, stride)

    def forward(self, x):
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet50():
    layers = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for blocks, width, stride, dilation in [(3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 2, 1), (3, 512, 1, 2)]:
        for i in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if i == 0 else 1, dilation))
            inputs = width * 4
    return nn.Sequential(*layers)


class Aspp(nn.Module):
    def __init__(self, inputs=2048, channels=512, dilations=(1, 6, 12, 18)):
        super().__init__()
        self.pool = conv_bn(inputs, channels, 1)
        self.branches = nn.ModuleList(conv_bn(inputs, channels, 1 if d == 1 else 3, 1, d) for d in dilations)
        self.bottleneck = conv_bn(channels * (len(dilations) + 1), channels, 3)
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 128, 1))

    def forward(self, x):
        pooled = F.relu(self.pool(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        x = torch.cat([pooled] + [F.relu(branch(x)) for branch in self.branches], 1)
        return self.project(F.relu(self.bottleneck(x)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class VitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """ViT-S/16 whose patch tokens are the map."""

    def __init__(self, width=384, depth=12, heads=6, grid=14):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, grid * grid + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(VitBlock(width, heads) for _ in range(depth)))

    def forward(self, x):
        x = self.patches(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.blocks(tokens)[:, 1:].transpose(1, 2).reshape(x.shape)


class Whole(nn.Module):
    """Parts one after the other, in a frame that TorchDynamo compiles."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Key(Whole):
    """The key network; a class of its own, so that its compiled code is not looked for among the query's."""

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def tiny(make):
    """Return a network for rehearsals: a convolution to stride 16 in place of the backbone."""
    return make(conv_bn(3, 32, 17, 16), Aspp(32, 16))


NETWORKS = {
    "r50_aspp": lambda make=Whole: make(resnet50(), Aspp()),
    "vit_aspp": lambda make=Whole: make(Vit(), Aspp(384)),
    "tiny": lambda make=Whole: tiny(make),
}
