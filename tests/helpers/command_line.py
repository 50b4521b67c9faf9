"""The command line, called in this process."""

from cp2_jax.cli import main


def cp2(capsys, name, *arguments):
    """Run `cp2 NAME ARGUMENTS…`; return (status, output, errors)."""
    try:
        status = main.run(name, [str(argument) for argument in arguments], f"cp2 {name}")
    except SystemExit as left:  # --help
        status = left.code
    return status, *capsys.readouterr()
