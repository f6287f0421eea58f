"""Which tests are quick: `pytest -m quick` runs them in a minute and a half on two cores.

They touch every wing, and come first in `.ci/run`: what is plainly broken shows at once. The
beginning of a test's place counts, so that a folder, a file or one test can stand here.
"""

QUICK = (
    "adapters/",
    "architectures/",
    "benchmarks/test_benchmarks.py",
    "catalog/test_fleet_dispatch.py",
    "catalog/test_page.py",
    "cli/test_cli.py::test_bad_file_is_refused_in_one_line",
    "cli/test_cli.py::test_help_and_unknown_command",
    "cli/test_cli.py::test_inspect",
    "engines/",
    "evaluation/test_laboratory_measures.py",
    "house/test_extending_page.py",
    "house/test_layout.py",
    "house/test_project_files.py",
    "house/test_public_api.py",
    "house/test_python_page.py",
    "house/test_quick.py",
    "house/test_walls.py",
    "io/test_headers.py",
    "io/test_io_tensors.py",
    "io/test_manifest.py",
    "matching/",
    "method/test_encoding.py",
    "method/test_operators.py",
    "method/test_singular.py",
    "migration/test_migrate.py::test_gate_and_reasons",
    "nets/test_unet_config.py",
    "plans/test_options.py",
    "plans/test_plan.py",
    "refine/test_guard.py",
    "refine/test_parametrisation.py",
    "refine/test_rows.py",
    "refine/test_teacher.py",
    "refine/test_triggers.py",
    "subspaces/test_subspaces.py::test_damaged_file_is_computed_again",
    "subspaces/test_subspaces.py::test_more_columns_are_computed_when_a_rule_needs_them",
    "subspaces/test_subspaces.py::test_prune_touches_only_what_is_the_stores",
    "subspaces/test_subspaces.py::test_store_of_nothing",
    "verification/test_dense.py",
)
NOT_QUICK = (
    "adapters/test_algorithms",
    "adapters/test_comparison.py",
    "adapters/test_conversions.py",
    "adapters/test_flax_format.py",
    "adapters/test_formats.py",
    "adapters/test_fuzz_algorithms.py",
    "adapters/test_licences.py",
    "adapters/test_lycoris_format.py",
    "adapters/test_peft_algorithms.py",
    "adapters/test_peft_format.py",
    "adapters/test_plain_kinds.py",
    "adapters/test_scales.py",
    "architectures/test_family.py",
    "architectures/test_flax_names.py",
    "catalog/test_page.py::test_in_a_browser",
)
"""What takes long among them."""


def is_quick(place: str) -> bool:
    """Whether a test is quick.

    Args:
        place: its file below `tests/`, or `file::test`.
    """
    return place.startswith(QUICK) and not place.startswith(NOT_QUICK)


def has_quick(file: str) -> bool:
    """Whether a test of a file below `tests/` is quick."""
    return file.startswith(QUICK) or any(place.startswith(f"{file}::") for place in QUICK)
