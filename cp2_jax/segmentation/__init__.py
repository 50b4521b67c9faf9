"""Semantic segmentation (section 4): the finetuning step, prediction, evaluation, the jobs.

May import `options`, `paths`, `pictures`, `models`, `runs`, `data` and `convert`; never `pretraining`.
"""
