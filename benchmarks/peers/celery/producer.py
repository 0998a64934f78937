"""Enqueues for Celery."""

from produce import prompt, run_blocking
from worker import app, echo


class Producer:
    """Celery has no bulk call."""

    def start(self):
        with app.producer_or_acquire() as producer:
            producer.connection.ensure_connection()
        app.backend.client.ping()

    def one(self, number):
        return echo.delay(prompt(number))

    def many(self, total):
        for number in range(total):
            self.one(number)

    def result(self, number):
        return self.one(number).get(timeout=30)


if __name__ == "__main__":
    run_blocking(Producer())
