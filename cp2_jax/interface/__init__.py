"""What users call from Python: pretrain, finetune, predict, embed, load. `import cp2_jax` offers them all.

Each function makes a config, calls one job and says what to do next. The command line calls the same functions. May import
everything but `cli`; only `cli` imports it.
"""
