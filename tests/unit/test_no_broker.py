"""A RabbitMQ that cannot be reached."""

import asyncio
import gc
import logging
import threading

import pytest

from stream.brokers.rabbitmq import RabbitBroker
from stream.errors import BrokerUnreachable
from tests.rabbitmq_node import free_port


def test_a_connection_that_never_came_about_can_be_collected_in_any_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, logger="aiormq")  # a kept record would hold the driver's connection
    broker = RabbitBroker(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    kept = None
    with asyncio.Runner() as runner:
        try:
            runner.run(broker.__aenter__())
        except BrokerUnreachable as refused:
            kept = refused
        assert kept is not None
        kept = None
        collecting = threading.Thread(target=gc.collect)  # a warning is an error here
        collecting.start()
        collecting.join()
