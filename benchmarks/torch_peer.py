"""The CP2 step on ResNet-50 + ASPP written plainly in PyTorch: the peer of benchmarks/step.py. Needs torch, not
torchvision. A copy of the method's structure for timing, not of anybody's code."""

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

    def __init__(self, width=384, depth=12, heads=12, grid=14):
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


NETWORKS = {
    "r50_aspp": lambda: nn.Sequential(resnet50(), Aspp()),
    "vit_aspp": lambda: nn.Sequential(Vit(), Aspp(384)),
}


class Cp2(nn.Module):
    """Query and key networks, queue, and the loss of equation 5."""

    def __init__(self, network="r50_aspp", queue_size=65536, momentum=0.999):
        super().__init__()
        self.query = NETWORKS[network]()
        self.key = NETWORKS[network]().requires_grad_(False)
        self.key.load_state_dict(self.query.state_dict())
        self.register_buffer("queue", F.normalize(torch.randn(128, queue_size), dim=0))
        self.momentum, self.pointer = momentum, 0

    def forward(self, image_q, image_k, mask_q, mask_k):
        q = F.normalize(self.query(image_q).flatten(2).float(), dim=1)
        with torch.no_grad():
            torch._foreach_mul_(list(self.key.parameters()), self.momentum)
            torch._foreach_add_(list(self.key.parameters()), list(self.query.parameters()), alpha=1 - self.momentum)
            k = F.normalize(self.key(image_k).flatten(2).float(), dim=1)
        m_q, m_k = (m[:, 8::16, 8::16].flatten(1) for m in (mask_q, mask_k))
        pooled_q = F.normalize((q * m_q[:, None]).sum(2), dim=1)
        pooled_k = F.normalize((k * m_k[:, None]).sum(2), dim=1)
        logits = torch.cat([(pooled_q * pooled_k).sum(1, keepdim=True), pooled_q @ self.queue.clone()], 1) / 0.2
        instance = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        pairs = m_q[:, :, None] * m_k[:, None, :]
        log_softmax = F.log_softmax(torch.einsum("bcq,bck->bqk", q, k), dim=2)
        dense = (-(log_softmax * pairs).sum((1, 2)) / pairs.sum((1, 2))).mean()
        with torch.no_grad():
            self.queue[:, self.pointer : self.pointer + len(pooled_k)] = pooled_k.T
            self.pointer = (self.pointer + len(pooled_k)) % self.queue.shape[1]
        return instance + 0.2 * dense


# As the original runs it, and as strong as PyTorch makes it; "channels_last" lies between, for CPUs.
VARIANTS = {
    "original": dict(),
    "channels_last": dict(channels_last=True, fused=True),
    "best": dict(channels_last=True, fused=True, autocast=True, compiled=True),
}


def make_step(network="r50_aspp", device="cpu", channels_last=False, fused=False, autocast=False, compiled=False):
    """Return `step(image_q, image_k, mask_q, mask_k) -> loss` (NCHW inputs): forward, backward, optimiser.

    Args:
      channels_last: memory format of model and images.
      fused: the optimiser's fused kernels.
      autocast: bfloat16 forward.
      compiled: `torch.compile` of the two networks.
    """
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 where there is some, as the original's PyTorch did
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = Cp2(network).to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    weights = list(model.query.parameters())
    if network.startswith("vit"):
        optimizer = torch.optim.AdamW(weights, 5e-5, weight_decay=0.01, fused=fused)
    else:
        optimizer = torch.optim.SGD(weights, 0.03, momentum=0.9, weight_decay=1e-4, fused=fused)
    if compiled:
        model.query.compile()
        model.key.compile()

    def step(image_q, image_k, mask_q, mask_k):
        if channels_last:
            image_q, image_k = (x.contiguous(memory_format=torch.channels_last) for x in (image_q, image_k))
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(image_q, image_k, mask_q, mask_k)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step
