"""The study of Quick Tuning for one accelerator of the H100 class: 16 seeds in one program; otherwise as study_cpu.py.

    cp2 prepare study --output data/study --photographs tiny_imagenet32.npz --camvid camvid
    cp2 study --config study_gpu --workdir runs/study_gpu --config.data=data/study

Expected: no figure yet. It was rehearsed in miniature (tests/reproduce/test_quick_tuning.py); no accelerator was at hand.
It may be broken off and started again, for finished arms are kept. 16 seeds need 16 x 64 x 2 crops a step from the host.
"""

from cp2_jax.configs import study_cpu


def get_config(variants: str = ""):
    """Return the config; variants as of `study_cpu`."""
    config = study_cpu.get_config(variants)
    config.seeds = tuple(range(200, 216))
    config.base_steps = 3000
    config.pretrain.steps = 600
    config.pretrain.batch_size = 64
    config.pretrain.loss.queue_size = 1024
    config.finetune.batch_size = 16
    config.finetune.steps = 300
    for model in (config.pretrain.model, config.finetune.model):
        model.resnet.update(width=16, stem_width=16)
        model.aspp.channels = 64
    return config
