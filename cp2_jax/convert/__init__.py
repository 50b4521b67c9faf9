"""Other projects' checkpoints, in and out: `containers` turn files into arrays, the rest gives the arrays our names.

May import `lines`, `options`, `paths`, `models` and `runs.checkpoints`. Nothing but `containers` reads a file of somebody else's.
"""
