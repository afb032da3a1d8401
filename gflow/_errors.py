"""What errors say, in a line: those of compiled code, and those of functions of the user's own."""


def in_a_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(_lines(error) or ['no message'])[0].rstrip('.')}"


def message_of(error: Exception) -> str:
    """The line with the message, of an error raised inside compiled code."""
    lines = _lines(error)
    named = [line for line in lines if line.partition(":")[0].endswith("Error")]
    return (named or lines or [type(error).__name__])[0]


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]
