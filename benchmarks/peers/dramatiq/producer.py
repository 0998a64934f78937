"""Enqueues for Dramatiq."""

from gevent import monkey

monkey.patch_all()

from produce import prompt, run_blocking  # noqa: E402  gevent patches first
from worker import broker, echo  # noqa: E402  the same


class Producer:
    """Dramatiq has no bulk call."""

    def start(self):
        broker.client.ping()

    def one(self, number):
        return echo.send(prompt(number))

    def many(self, total):
        for number in range(total):
            self.one(number)

    def result(self, number):
        return self.one(number).get_result(block=True)


if __name__ == "__main__":
    run_blocking(Producer())
