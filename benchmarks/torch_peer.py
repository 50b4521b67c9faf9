"""CP2's step, finetuning and evaluation in PyTorch, as the original runs them and as strong as PyTorch makes them: the
peer of benchmarks/step.py and segmenting.py. A copy of the method's structure for timing, not of anybody's code.

Each network is compiled whole. What makes a step returns a function beside it that compiles the networks and runs nothing,
so that other programs can be timed on the card meanwhile."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch_networks import NETWORKS, Aspp, Key, Vit, Whole, conv_bn, resnet50


def losses(q, k, m_q, m_k, queue):
    """Return (the loss of equation 5, k+), of dense features [batch, channels, pixels] and masks [batch, pixels]."""
    q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
    pooled_q = F.normalize((q * m_q[:, None]).sum(2), dim=1)
    pooled_k = F.normalize((k * m_k[:, None]).sum(2), dim=1)
    logits = torch.cat([(pooled_q * pooled_k).sum(1, keepdim=True), pooled_q @ queue], 1) / 0.2
    instance = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    pairs = m_q[:, :, None] * m_k[:, None, :]
    log_softmax = F.log_softmax(torch.einsum("bcq,bck->bqk", q, k), dim=2)
    dense = (-(log_softmax * pairs).sum((1, 2)) / pairs.sum((1, 2))).mean()
    return instance + 0.2 * dense, pooled_k


class _NotRun(Exception):
    """A graph was compiled, and not run."""


class Inductor:
    """TorchInductor, as `torch.compile` takes it in a mode; within `ahead` it compiles graphs and runs none."""

    def __init__(self, mode=None):
        self.mode, self.only_compiles = mode, False

    def __call__(self, graph, inputs):
        from torch._functorch import config
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        lazy = "force_non_lazy_backward_lowering"  # the backward pass now, too, not when it is first run
        with config.patch({lazy: True} if hasattr(config, lazy) else {}):
            compiled = compile_fx(graph, inputs, config_patches=list_mode_options(self.mode) if self.mode else None)

        def run(*args):
            if self.only_compiles:
                raise _NotRun
            return compiled(*args)

        return run

    @contextlib.contextmanager
    def ahead(self):
        self.only_compiles = True
        try:
            yield
        except _NotRun:
            pass
        finally:
            self.only_compiles = False


class Cp2(nn.Module):
    """Query and key networks, queue, and the loss of equation 5."""

    def __init__(self, network="r50_aspp", queue_size=65536, momentum=0.999):
        super().__init__()
        self.query = NETWORKS[network]()
        self.key = NETWORKS[network](Key).requires_grad_(False)
        self.key.load_state_dict(self.query.state_dict())
        self.register_buffer("queue", F.normalize(torch.randn(128, queue_size), dim=0))
        self.momentum, self.pointer, self.losses = momentum, 0, losses

    def compile_parts(self, backend):
        """Compile each network whole, and the losses, for the shapes of the first call alone."""
        self.query.compile(dynamic=False, backend=backend)
        self.key.compile(dynamic=False, backend=backend)
        self.losses = torch.compile(losses, dynamic=False, backend=backend)

    def pixels(self, *masks):
        return (m[:, 8::16, 8::16].flatten(1) for m in masks)

    def like_features(self, images):
        """Return what both networks give of images, but for the numbers."""
        size = (len(images), len(self.queue), *(n // 16 for n in images.shape[2:]))
        dtype = torch.bfloat16 if torch.is_autocast_enabled(images.device.type) else images.dtype
        empty = torch.empty(size, dtype=dtype, device=images.device).contiguous(memory_format=torch.channels_last)
        return empty.clone().requires_grad_().flatten(2), empty.flatten(2)

    def forward(self, image_q, image_k, mask_q, mask_k):
        with torch.no_grad():
            torch._foreach_lerp_(list(self.key.parameters()), list(self.query.parameters()), 1 - self.momentum)
            k = self.key(image_k).flatten(2)
        q = self.query(image_q).flatten(2)
        loss, pooled_k = self.losses(q, k, *self.pixels(mask_q, mask_k), self.queue.clone())
        with torch.no_grad():
            self.queue[:, self.pointer : self.pointer + len(pooled_k)] = pooled_k.T
            self.pointer = (self.pointer + len(pooled_k)) % self.queue.shape[1]
        return loss


# As the original runs it, and as strong as PyTorch makes it; between them, in float32 for CPUs.
_BEST = dict(channels_last=True, fused=True, autocast=True, compiled=True)
VARIANTS = {
    "original": dict(),
    "channels_last": dict(channels_last=True, fused=True),
    "compiled": dict(channels_last=True, fused=True, compiled=True),
    "best": _BEST,
    "autotuned": _BEST | dict(mode="max-autotune-no-cudagraphs"),
}


def settings():
    """TensorFloat-32 where there is some, as the original's PyTorch did; cuDNN's fastest algorithms."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def _optimizer(network, weights, fused):
    if network.startswith("vit"):
        return torch.optim.AdamW(weights, 5e-5, weight_decay=0.01, fused=fused)
    return torch.optim.SGD(weights, 0.03, momentum=0.9, weight_decay=1e-4, fused=fused)


def make_step(
    network="r50_aspp",
    device="cpu",
    channels_last=False,
    fused=False,
    autocast=False,
    compiled=False,
    mode=None,
    queue_size=65536,
):
    """Return `prepare` and `step(image_q, image_k, mask_q, mask_k) -> loss` (NCHW): forward, backward, optimiser.

    Args:
      channels_last: memory format of model and images.
      fused: the optimiser's fused kernels.
      autocast: bfloat16 forward.
      compiled: `torch.compile` of the two whole networks and of the losses. mode: of that.
    """
    settings()
    model = Cp2(network, queue_size).to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer, inductor = _optimizer(network, list(model.query.parameters()), fused), Inductor(mode)
    if compiled:
        model.compile_parts(inductor)

    def laid_out(*images):
        return (x.contiguous(memory_format=torch.channels_last) for x in images) if channels_last else images

    def prepare(image_q, image_k, *masks):
        if not compiled:
            return
        image_q, image_k = laid_out(image_q, image_k)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            with inductor.ahead(), torch.no_grad():
                model.key(image_k)
            with inductor.ahead():
                model.query(image_q)
            with inductor.ahead():
                model.losses(*model.like_features(image_q), *model.pixels(*masks), model.queue.clone())

    def step(image_q, image_k, mask_q, mask_k):
        image_q, image_k = laid_out(image_q, image_k)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(image_q, image_k, mask_q, mask_k)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return prepare, step


def _segmenter(network, classes):
    """Return a network with a classifier on its head, for images of 512 x 512."""
    if network == "tiny":
        backbone, head = conv_bn(3, 32, 17, 16), Aspp(32, 16)
    else:
        backbone, head = (Vit(grid=32), Aspp(384)) if network.startswith("vit") else (resnet50(), Aspp())
    channels = head.bottleneck[0].out_channels
    head.project = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(channels, classes, 1))
    return Whole(backbone, head)


def _to_inputs(images, mean, std):
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def make_segmenting(job, network, classes, device="cpu", autocast=True, compiled=True, mode=None):
    """Return `prepare` and `step(images, labels)` of uint8 [batch, h, w, 3] and [batch, h, w], channels-last throughout.

    Args:
      job: "finetune": the loss of a training step, upsampled logits and SGD with fused kernels; "evaluate": the confusion
        matrix of the batch. Both include normalising.
    """
    settings()
    model = _segmenter(network, classes).to(device).to(memory_format=torch.channels_last)
    model.train(job == "finetune")
    inductor = Inductor(mode)
    if compiled:
        model.compile(dynamic=False, backend=inductor)
    optimizer = _optimizer(network, list(model.parameters()), fused=True)
    mean, std = (torch.tensor(v, device=device) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def logits(images):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            found = model(_to_inputs(images, mean, std))
        return F.interpolate(found.float(), images.shape[1:3], mode="bilinear", align_corners=False)

    def finetune(images, labels):
        loss = F.cross_entropy(logits(images), labels.long(), ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def evaluate(images, labels):
        with torch.inference_mode():
            predicted, counted = logits(images).argmax(1), labels < classes
            cells = torch.where(counted, labels.long() * classes + predicted, classes**2)
            return torch.bincount(cells.flatten(), minlength=classes**2 + 1)[:-1].view(classes, classes)

    def prepare(images, labels):
        if compiled:
            with inductor.ahead(), torch.inference_mode(job == "evaluate"):
                logits(images)

    return prepare, {"finetune": finetune, "evaluate": evaluate}[job]


@contextlib.contextmanager
def recompilations_counted():
    """Yield a function that says how many graphs TorchDynamo has compiled since."""
    from torch._dynamo.utils import counters

    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
