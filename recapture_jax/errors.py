"""The one exception for bad user input: main prints its single line and exits with code 2."""


class InputError(ValueError):
    """Bad input, refused before work starts; the message is one line: wrong, expected, remedy."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
