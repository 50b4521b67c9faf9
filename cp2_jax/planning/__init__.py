"""What a run will need, read from the compiled step: memory, work, communication, time at best.

Nothing trains here. May import `lines`, `options`, `models`, `runs`, `pretraining` and `segmentation`.
"""
