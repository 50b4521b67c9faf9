"""Semantic segmentation (section 4): the finetuning step, prediction, evaluation, the jobs.

May import `models`, `data`, `convert`, `runs`; never `pretraining`.
"""
