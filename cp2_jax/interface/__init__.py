"""What users call from Python: pretrain, finetune, evaluate, predict, export, embed. `import cp2_jax` offers them all.

Each function makes a config, calls one job and says what to do next; the command line calls the same functions. May import
`lines`, `options`, `config_files`, `paths`, `pictures`, `models`, `runs`, `augment`, `data`, `convert`, `pretraining`,
`segmentation`, `features`, `planning` and `reproduce`.
"""
