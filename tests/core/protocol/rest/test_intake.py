"""The limits on requests."""

from kserve.config import ServerConfig
from kserve.protocol.inflight_bytes import InflightBytes
from kserve.protocol.rest.intake import Intake


def test_the_settings_of_a_server_are_taken_over() -> None:
    config = ServerConfig(
        max_request_bytes=1, header_timeout_s=3, body_timeout_s=4, send_timeout_s=5
    )
    inflight = InflightBytes()

    intake = Intake.from_config(config, inflight)

    assert (
        intake.max_request_bytes,
        intake.header_timeout_s,
        intake.body_timeout_s,
        intake.send_timeout_s,
    ) == (1, 3, 4, 5)
    assert intake.inflight is inflight
