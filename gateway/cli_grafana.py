"""``kvgate grafana``: the Grafana dashboard that is shipped, to be imported there."""

import typer


def grafana() -> None:
    """Print a dashboard for Grafana, made for Prometheus scraping GET /metrics."""
    from importlib.resources import files

    typer.echo(files("gateway").joinpath("grafana.json").read_text(), nl=False)
