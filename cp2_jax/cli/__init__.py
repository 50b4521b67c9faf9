"""The command `cp2`, and the scripts, which are the same commands: arguments in, one call, lines and a status out.

On top of everything; only here do exceptions become lines and exit statuses (`errors`). May import `lines`, `options`,
`config_files`, `paths`, `pictures`, `models`, `runs`, `augment`, `data`, `convert`, `pretraining`, `segmentation`,
`features`, `planning`, `reproduce` and `interface`.
"""
