"""More users step by step: throughput and latency against concurrency.

locust -f loadtest/locustfile.py,loadtest/shapes/ramp.py --headless -H URL --step-users 4 --step-seconds 30
"""

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.load_shapes import ramp


@events.init_command_line_parser.add_listener
def add_ramp_arguments(parser: LocustArgumentParser) -> None:
    """Add the size of the steps."""
    parser.add_argument("--step-users", type=int, default=4)
    parser.add_argument("--step-seconds", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=8)


class Ramp(LoadTestShape):
    """Steps of equal height and length."""

    def tick(self) -> tuple[int, float] | None:
        """Return the users of this second and how many may start in one."""
        options = self.runner.environment.parsed_options
        users = ramp(
            self.get_run_time(),
            step_users=options.step_users,
            step_seconds=options.step_seconds,
            num_steps=options.steps,
        )
        return None if users is None else (users, float(options.step_users))
