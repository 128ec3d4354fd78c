"""pxsched(1) has every command with its options, and every setting with what it takes."""

import shutil
import subprocess

import pytest

from pxsched.cli import AREAS, parser
from pxsched.settings.policy import NodeSettings, Policy, key_of


@pytest.fixture(scope="module")
def page(made):
    return made("make_manual.py").replace("\\-", "-")


def test_every_command_is_on_it_with_every_option(page):
    sections = page.split("\n.SS pxsched ")
    assert {section.split()[0] for section in sections[1:]} == set(AREAS)
    for section in sections[1:]:
        name = section.partition("\n")[0].split()
        command = parser(name[0])
        for word in name:
            command = next(action for action in command._actions if action.choices).choices[word]
        for option in command._option_string_actions.keys() - {"--help"}:
            assert option in section, (name, option)


def test_every_setting_is_on_it_with_what_it_takes(page):
    node, vm = page.partition("\n.SS [node]")[2].split("\n.SS [defaults], ")
    for section, model in ((node, NodeSettings), (vm, Policy)):
        for name, setting in model.declared.items():
            entry = section.partition(f"\\fB{key_of(name)}\\fR = ")[2].partition("\n.TP")[0]
            assert setting.values.replace("`", "") in entry, name


def test_man_has_nothing_to_complain_of(made):
    if not shutil.which("groff"):
        pytest.skip("needs groff")
    command = ["groff", "-man", "-Tutf8", "-ww", "-z"]
    done = subprocess.run(command, input=made("make_manual.py"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_what_is_shown_nothing_is_taken_for_a_request(made):
    requests = {line.split()[0] for line in made("make_manual.py").splitlines() if line[:1] in (".", "'")}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".nf", ".fi", ".B", ".I", ".IR", ".RB", ".RI"}
