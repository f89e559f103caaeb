"""A pause of a thread that cannot wait for an event.

`time.sleep` fails with EINVAL in a process whose clock is faked (libfaketime), and so would what is paused.
"""

import select


def pause(seconds: float) -> None:
    """Lets other threads and processes run for so long, or at least once."""
    select.select((), (), (), seconds)
