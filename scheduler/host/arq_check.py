"""The connection of `arq --check`, which reads the health check of a worker process and starts nothing."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import cast

from arq.connections import RedisSettings
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import SentinelConnectionPool

from scheduler.redis_server.errors import translated
from scheduler.redis_server.pool import connection_pool
from scheduler.redis_server.sentinel import SentinelUrl, is_sentinel
from scheduler.redis_server.url import tls_options


def check_settings(url: str) -> RedisSettings:
    """Make the settings by which arq connects.

    Raises:
        RedisUnavailable: no sentinel knows a primary.
    """
    return _through_sentinels(url) if is_sentinel(url) else _direct(url)


def _direct(url: str) -> RedisSettings:
    settings = RedisSettings.from_dsn(url)
    if settings.ssl:
        known = {field.name for field in fields(settings)}
        options = {**tls_options(url), **parse_url(url)}
        for name in known & {name for name in options if name.startswith("ssl_")}:
            setattr(settings, name, options[name])
    return settings


def _through_sentinels(url: str) -> RedisSettings:
    at = SentinelUrl.parse(url)
    # arq would ask sentinels without TLS and without credentials.
    host, port = asyncio.run(_primary(url))
    return RedisSettings(
        host=host,
        port=port,
        database=at.db,
        username=at.username,
        password=at.password,
        ssl=at.tls,
        ssl_ca_certs=at.ssl_ca_certs,
        ssl_check_hostname=at.tls,
    )


async def _primary(url: str) -> tuple[str, int]:
    pool = cast("SentinelConnectionPool", connection_pool(url, retries=0))
    try:
        with translated(url):
            host, port = await pool.get_master_address()
        return str(host), int(port)
    finally:
        await pool.disconnect()
