"""`cp2 study`: the paper's ablations in small."""

from cp2_jax.cli import command

TEXT = """\
The paper's ablations in small (docs/results.md).

  cp2 prepare demo --output data/study --size 48 --labelled 400
  cp2 study --config study_demo --workdir runs/study --config.data=data/study
  cp2 reproduce collect runs/study

One JSON file for each method and seed in WORKDIR/cells; what is there is not
made again. Methods and seeds may be given, so that several machines share the
cells out and copy the files together:
--config.methods="('cp2', 'scratch')" --config.seeds="(3, 4)"."""


def _options(made):
    command.place(made, "workdir", "where cells and results go")


def _run(arguments):
    from cp2_jax.reproduce.study import Study

    config = command.typed_config(arguments)
    with config.unlocked():
        config.pretrain.data.path = config.finetune.data.path = config.data
    Study(config, arguments.workdir).run()


COMMAND = command.Command(TEXT, _options, _run, config="study_demo")
