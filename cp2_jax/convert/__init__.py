"""Other projects' checkpoints, in and out: `containers` turn files into arrays, the rest gives the arrays our names.

May import `lines`, `options`, `paths`, `models` and `runs.checkpoints`. Only `containers` reads files of somebody else's.
"""
