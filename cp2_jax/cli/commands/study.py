"""`cp2 study`: the paper's ablations in small."""

import os

from cp2_jax.cli import command

TEXT = """\
The paper's ablations in small (docs/results.md), and Quick Tuning in small
(docs/when_it_pays.md).

  cp2 prepare demo --output data/study --size 48 --labelled 400
  cp2 study --config study_demo --workdir runs/study --config.data=data/study
  cp2 reproduce collect runs/study

  cp2 prepare study --output data/tuning --photographs tiny_imagenet32.npz
  cp2 study --config study_cpu --workdir runs/tuning --config.data=data/tuning

One JSON file for each method and seed in WORKDIR/cells; what is there is not
made again. Methods and seeds may be given, so that several machines share the
cells out and copy the files together:
--config.methods="('cp2', 'scratch')" --config.seeds="(3, 4)"."""


def _options(made):
    command.place(made, "workdir", "where cells and results go", kind=command.local)


def _run(arguments):
    from cp2_jax.reproduce.quick_tuning import QuickTuning
    from cp2_jax.reproduce.study import Study

    config = command.typed_config(arguments)
    folders = config.get("folders", ("", ""))
    with config.unlocked():
        config.pretrain.data.path, config.finetune.data.path = (os.path.join(config.data, folder) for folder in folders)
    study = QuickTuning if config.get("protocol") == "quick_tuning" else Study
    study(config, arguments.workdir).run()


COMMAND = command.Command(TEXT, _options, _run, config="study_demo")
