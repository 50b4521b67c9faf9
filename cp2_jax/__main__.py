"""`python -m cp2_jax COMMAND …` is `cp2 COMMAND …`."""

from cp2_jax.cli.main import main

if __name__ == "__main__":
    main()
