"""CP² pretraining (the paper's section 3): losses, memory bank, the training step, what is watched on the way, the job.

May import `options`, `paths`, `pictures`, `models`, `runs`, `augment`, `data` and `convert`; never `segmentation`.
"""
