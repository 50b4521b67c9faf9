"""What every job shares: the loop, checkpoints, writers, devices and processes, random keys, optimisers.

Nothing here knows a task: no losses, no masks, no classes. May import `lines`, `options`, `paths` and `pictures`, and
nothing else of this package.
"""
