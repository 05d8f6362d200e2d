"""Bursts over a steady load: does the queue empty again, and who pays for it?

locust -f loadtest/locustfile.py,loadtest/shapes/burst.py --headless -H URL --base-users 4 --burst-users 32
"""

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.load_shapes import burst


@events.init_command_line_parser.add_listener
def add_burst_arguments(parser: LocustArgumentParser) -> None:
    """Add the size and the rhythm of the bursts."""
    parser.add_argument("--base-users", type=int, default=4)
    parser.add_argument("--burst-users", type=int, default=32)
    parser.add_argument("--burst-period", type=float, default=60.0, help="seconds from one burst to the next")
    parser.add_argument("--burst-length", type=float, default=10.0, help="seconds")
    parser.add_argument("--burst-duration", type=float, default=300.0, help="seconds of the whole run")


class Burst(LoadTestShape):
    """A low plain with towers."""

    def tick(self) -> tuple[int, float] | None:
        """Return the users of this second and how many may start in one."""
        options = self.runner.environment.parsed_options
        users = burst(
            self.get_run_time(),
            users=options.base_users,
            burst_users=options.burst_users,
            period=options.burst_period,
            length=options.burst_length,
            duration=options.burst_duration,
        )
        return None if users is None else (users, float(options.burst_users))
