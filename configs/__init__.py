"""One experiment a file, plain values: paper reference, command, expected figure. Also `cp2_jax.configs` (a link)."""
