"""Which files of tests start first: what takes long must not start when the others are done.

`--no-loadscope-reorder` (pyproject.toml) keeps this order; without it pytest-xdist starts with the
files that have the most tests, and one worker ends alone with a few long ones.
"""

SLOW = (
    "refine/test_apart.py",
    "catalog/test_fleet_runs.py",
    "catalog/test_soak_kill.py",
    "catalog/test_soak_fleet.py",
    "nets/test_sharded_pictures.py",
    "nets/test_pipeline.py",
    "evaluation/test_generate.py",
    "catalog/test_fleet_worker.py",
    "cli/test_cli.py",
    "benchmarks/test_benchmark_catalog.py",
    "migration/test_many.py",
    "house/test_flax_page.py",
    "catalog/test_catalog_trouble.py",
    "cli/test_fleet_command.py",
    "cli/test_verify_command.py",
    "cli/test_verdicts.py",
    "catalog/test_catalog.py",
    "adapters/test_formats.py",
    "evaluation/test_demo.py",
    "catalog/test_one_guard.py",
)
"""Half a minute or more of one core each, the longest first."""


def turn(file: str) -> int:
    """Place of a file (relative to `tests/`) among those that start first, or behind them."""
    return SLOW.index(file) if file in SLOW else len(SLOW)
