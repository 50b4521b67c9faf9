"""From files to host batches (NumPy): `images` for pretraining, `labelled` for segmentation, `prepare` writes data sets.

May import `lines`, `options`, `paths`, `pictures` and `runs.progress`; never `models`, and nothing that needs a device.
"""
