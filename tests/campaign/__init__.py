"""A fuzz and kill campaign: what strangers, users and power cuts do to the package, for as long as it is told to.

    python -m tests.campaign --minutes 30
    python -m tests.campaign --seed 7 --only recordings --trial 12

A part is a file here with `trials(folder)`, a context manager of a function that tries something. It gets a random
generator, which decides what, and returns in a word how it ended. What it raises is a failure.
"""
