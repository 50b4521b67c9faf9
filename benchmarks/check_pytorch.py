"""From MoCo v2's file through Quick Tuning to a PyTorch model.

    python benchmarks/check_pytorch.py --images DIR --workdir DIR

A check to repeat by hand; it needs PyTorch, which the project and its tests do not. It writes a checkpoint as MoCo v2's
main_moco.py does (ResNet-50, random weights, with queue and optimiser state inside), converts it, quick-tunes it,
exports it, loads the export with strict=True into the model below and compares the features of every stage.

The model is written from MMSegmentation's names and PyTorch's own modules, with nothing of this project.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride=1, dilation=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        self.downsample = None
        if stride != 1 or inputs != width * 4:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width * 4, 1, stride, bias=False), nn.BatchNorm2d(width * 4))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """`strides` and `dilations` of the stages: 1, 2, 2, 2 and 1, 1, 1, 1 in MoCo; 1, 2, 2, 1 and 1, 1, 1, 2 in CP2, here
    for all of the last stage's 3x3 convolutions, as in the paper."""

    def __init__(self, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), classes=0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, (blocks, stride, dilation) in enumerate(zip((3, 4, 6, 3), strides, dilations, strict=True)):
            width = 64 * 2**stage
            layers = [Bottleneck(inputs, width, stride, dilation)]
            layers += [Bottleneck(width * 4, width, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            inputs = width * 4
        if classes:  # MoCo v2's head
            self.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, classes))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


class ConvModule(nn.Module):
    def __init__(self, inputs, outputs, size, dilation=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class ASPPHead(nn.Module):
    def __init__(self, inputs=2048, channels=512, dilations=(1, 6, 12, 18)):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inputs, channels, 1))
        self.aspp_modules = nn.ModuleList(ConvModule(inputs, channels, 1 if d == 1 else 3, d) for d in dilations)
        self.bottleneck = ConvModule(channels * (len(dilations) + 1), channels, 3)
        self.contrast_conv = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 128, 1))

    def forward(self, x):
        pooled = self.image_pool(x).expand(-1, -1, *x.shape[2:])
        features = self.bottleneck(torch.cat([pooled, *(module(x) for module in self.aspp_modules)], dim=1))
        return features, self.contrast_conv(features)


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.decode_head = ResNet50(), ASPPHead()

    def forward(self, x):
        stages = self.backbone(x)
        return [*stages, *self.decode_head(stages[-1])]


class MoCo(nn.Module):
    """The modules and buffers of MoCo's builder.py, for their names."""

    def __init__(self):
        super().__init__()
        self.encoder_q, self.encoder_k = (ResNet50((1, 2, 2, 2), (1, 1, 1, 1), classes=128) for _ in range(2))
        self.register_buffer("queue", F.normalize(torch.randn(128, 65536), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


def write_moco(path: pathlib.Path) -> None:
    """Save what main_moco.py saves after an epoch: DistributedDataParallel's prefix, optimiser state of one real step."""
    torch.manual_seed(0)
    moco = MoCo()
    for module in moco.encoder_q.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    optimizer = torch.optim.SGD(moco.encoder_q.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    stages = moco.encoder_q(torch.randn(4, 3, 128, 128))
    moco.encoder_q.fc(stages[-1].mean((2, 3))).square().mean().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in moco.state_dict().items()}
    torch.save({"epoch": 1, "arch": "resnet50", "state_dict": state, "optimizer": optimizer.state_dict()}, path)


def script(name: str, *arguments) -> None:
    print(f"$ python scripts/{name} {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, arguments)], check=True)


def ours(run: pathlib.Path, images: np.ndarray) -> list[np.ndarray]:
    """The same features from the run's own checkpoint."""
    import jax

    import cp2_jax

    stages, variables = cp2_jax.load(run, features="stages")
    found = [*jax.jit(stages)(variables, images)]
    for features in ("head", "projection"):
        model, variables = cp2_jax.load(run, features=features)
        found.append(jax.jit(model)(variables, images))
    return [np.asarray(array).transpose(0, 3, 1, 2) for array in found]


def compare(run: pathlib.Path, exported: pathlib.Path, folder: pathlib.Path) -> float:
    """Print the largest difference of each stage's features on four images; return the largest, relative to the stage."""
    model = EncoderDecoder()
    print(model.load_state_dict(torch.load(exported, weights_only=True), strict=True))
    model.eval()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:4]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in files])
    with torch.no_grad():
        expected = model(((torch.from_numpy(images) / 255 - MEAN) / STD).permute(0, 3, 1, 2))
    worst = 0.0
    names = ("layer1", "layer2", "layer3", "layer4", "head", "projection")
    for name, theirs, mine in zip(names, expected, ours(run, images), strict=True):
        theirs = theirs.numpy()
        if name == "projection":
            theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        scale, error = np.abs(theirs).max(), np.abs(theirs - mine).max()
        worst = max(worst, error / scale)
        print(f"{name:10} {theirs.shape!s:20} largest {scale:9.4g}  difference {error:.2e}  ratio {error / scale:.2e}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args()
    folder = options.workdir
    folder.mkdir(parents=True, exist_ok=True)
    write_moco(folder / "moco_v2.pth.tar")
    print(f"moco_v2.pth.tar: {(folder / 'moco_v2.pth.tar').stat().st_size / 2**20:.0f} MiB")
    script("convert_checkpoint.py", folder / "moco_v2.pth.tar", folder / "converted")
    script(
        "pretrain.py",
        "--config",
        ROOT / "configs" / "quick_tune_r50_aspp.py",
        "--workdir",
        folder / "run",
        f"--config.data.path={options.images}",
        f"--config.init.checkpoint={folder / 'converted'}",
        f"--config.steps={options.steps}",
        f"--config.batch_size={options.batch_size}",
        "--config.model.dtype=float32",
        "--config.data.workers=0",
        "--config.log_every=1",
        "--config.picture_every=0",
        "--config.save_every=1000",
    )
    script("export_checkpoint.py", folder / "run", folder / "exported.pth", "--layout", "mmseg")

    worst = compare(folder / "run", folder / "exported.pth", options.images)
    print(f"worst ratio {worst:.2e}: {'agree to 1e-4' if worst < 1e-4 else 'THEY DIFFER'}")
    sys.exit(worst >= 1e-4)


if __name__ == "__main__":
    main()
