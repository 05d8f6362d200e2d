"""How many users there are at a time: pure functions behind the Locust shapes in shapes/."""


def ramp(second: float, *, step_users: int, step_seconds: float, num_steps: int) -> int | None:
    """Return `step_users` more users after every `step_seconds`; None after the last step."""
    step = int(second // step_seconds)
    return step_users * (step + 1) if step < num_steps else None


def burst(
    second: float, *, users: int, burst_users: int, period: float, length: float, duration: float
) -> int | None:
    """Return `users`, but `burst_users` in the last `length` seconds of a `period`; None after `duration`."""
    if second >= duration:
        return None
    return burst_users if second % period >= period - length else users
