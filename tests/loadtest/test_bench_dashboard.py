"""The dashboard's bench: its configuration is one, and what it subtracts is right."""

from gateway.config import Config
from loadtest.bench_dashboard import ADMIN, Round, config_of, shown


def test_its_configuration_is_valid_and_has_an_admin() -> None:
    config = Config.model_validate(config_of(9000, 3, 2))
    assert [tenant.admin for tenant in config.tenants] == [True, False, False]
    assert len(config.backends[0].models) == 3
    assert ADMIN not in str(config)


def test_what_viewers_cost_is_what_is_more_than_without_them() -> None:
    one = Round(idle_ms=1.5, looked_at_ms={1: 2.0, 10: 3.0}, first_bytes=10, bytes_per_s=5.0)
    assert (one.added(1), one.added(10)) == (0.5, 1.5)
    assert next(column.header for column in shown([one], 8).columns) == "viewers"
