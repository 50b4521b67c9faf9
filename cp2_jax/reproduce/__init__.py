"""The paper's tables as commands: their numbers, how each is made, and what came out.

May import `options`, `config_files`, `paths`, `pictures`, `models`, `runs`, `augment`, `data`, `convert`, `pretraining`
and `segmentation`; nothing below `interface` imports it.
"""
