"""The error that a user can put right."""


class UserError(ValueError):
    """An argument, a config or a file that cannot be used.

    Its message names the value, where it came from and what would be accepted. The commands print it as one line;
    every other exception is a defect of the program and keeps its traceback.
    """
