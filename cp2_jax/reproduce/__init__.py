"""The paper's tables as commands: their numbers, how each is made, and what came out."""
