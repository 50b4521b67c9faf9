"""Everything random that happens to images on the device: colours, blur, masks, and copy-paste composition (equation 1).

Pure functions of keys and arrays. May import `options`, `models.inputs` (the normalisation of inputs) and `runs.rngs`.
"""
