"""One module for each command of `cp2`, with its `COMMAND`."""
