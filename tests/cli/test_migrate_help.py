"""`prolora migrate --help`: every option is in a group, and no option is lost or changed."""

import re
from dataclasses import fields

import pytest

from prolora_jax.cli.main import run
from prolora_jax.cli.migrate_options import GROUPS, GroupedOptions, chosen
from prolora_jax.plans.options import BadOption, MigrationOptions

PANELS = ["What moves", "How", "Matching", "Output", "Catalog", "General"]


def test_every_option_of_a_migration_is_in_one_group():
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(field.name for field in fields(MigrationOptions))


def test_defaults_and_values_are_those_of_the_package():
    assert chosen(GroupedOptions()) == MigrationOptions()
    given = {"method": "rotation", "exclude": ("*to_q",), "rank": "8"}
    assert chosen(GroupedOptions(**given)) == MigrationOptions(**given)
    paper = chosen(GroupedOptions(rank="8", gate="corrected"), "paper")
    assert paper == MigrationOptions(method="prolora", gate="phi", gate_sides="left", rank="8")
    with pytest.raises(BadOption, match="--rank none: expected exact"):
        chosen(GroupedOptions(rank="none"))


def test_help_is_grouped_and_whole(capsys: pytest.CaptureFixture[str]):
    assert run(["migrate", "--help"]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"─ {panel}") for panel in PANELS]
    assert places == sorted(places)
    assert not re.search("─ (Parameters|Arguments)", said)
    for field in fields(MigrationOptions):
        assert f"--{field.name.replace('_', '-')} " in said
    first = {
        panel: said[place:].split("\n")[1] for panel, place in zip(PANELS, places, strict=True)
    }
    assert "INPUTS" in first["What moves"]
    assert "--method" in first["How"]
    assert "--out" in first["Output"]
