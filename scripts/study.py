"""The paper's ablations in small: python scripts/study.py --config configs/study_demo.py --workdir DIR --config.data=DATA

One JSON file for each method and seed in DIR/cells; what is there is not made again. Methods and seeds may be given:
--config.methods="('cp2', 'scratch')" --config.seeds='(3, 4)'; several machines may share the cells out and copy the files
together. Tables and figure: python scripts/reproduce.py collect DIR.
"""

import _cli

FLAGS = _cli.define_config_flags()

from cp2_jax.reproduce.study import Study  # noqa: E402


def main(_):
    config = FLAGS.value
    with config.unlocked():
        config.pretrain.data.path = config.finetune.data.path = config.data
    Study(config, _cli.flags.FLAGS.workdir).run()


if __name__ == "__main__":
    _cli.run(main)
