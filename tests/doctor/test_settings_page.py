"""The manual's page of settings says what the program takes."""

import importlib.util
from pathlib import Path

import pytest

from pxsched.root import Root
from pxsched.settings import files
from pxsched.settings.files import Settings
from pxsched.settings.policy import NodeSettings, Policy, key_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_declarations_make():
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    written = (DOCS / "settings.md").read_text()
    assert written == maker.page(), "python3 docs/make_settings.py > docs/settings.md"


def test_every_key_is_on_it_with_a_meaning():
    text = (DOCS / "settings.md").read_text()
    for name, setting in (*NodeSettings.declared.items(), *Policy.declared.items()):
        assert f"| `{key_of(name)}` |" in text
        assert setting.help and setting.values


def recipes() -> dict[str, str]:
    """By heading, the settings of each recipe."""
    section = (DOCS / "settings.md").read_text().partition("## Recipes")[2].partition("\n## ")[0]
    found = {}
    for recipe in section.split("\n### ")[1:]:
        heading, _, body = recipe.partition("\n")
        found[heading] = "".join(f"{line[4:]}\n" for line in body.splitlines() if line[:4] == "    ")
    return found


def load(base: Path, node: str, default: str = "") -> Settings:
    for name, text in ((files.NODE_FILE, node), (files.DEFAULT_FILE, default)):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return files.load(Root(str(base)), {})


@pytest.mark.parametrize("words", ["GPU is passed through", "Kubernetes", "hoster"])
def test_each_recipe_is_understood_and_each_of_its_lines_changes_something(tmp_path, words):
    (text,) = (recipe for heading, recipe in recipes().items() if words in heading)
    whole = load(tmp_path, text)
    assert whole.warnings == () and whole != Settings()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if "=" in line:
            less = load(tmp_path, "\n".join((*lines[:number], *lines[number + 1 :])))
            assert less.node != whole.node or less.policy(100) != whole.policy(100), line


def test_the_recipes_are_those_that_the_page_promises():
    assert len(recipes()) == 3


def shipped(name: str) -> str:
    return (DOCS.parent / "hooks/default" / name).read_text()


def uncommented(text: str) -> str:
    return "\n".join(line.removeprefix("#") for line in text.splitlines() if line[:2] not in ("# ", "#", ""))


def test_the_templates_for_admins_are_accepted_once_their_lines_count(tmp_path):
    """What is commented out in /etc/pxsched/pxsched.toml and /etc/default must be valid when it is not."""
    both = (uncommented(shipped(name)) for name in ("pxsched.toml", "proxmox-scheduler"))
    loaded = load(tmp_path, *both)
    assert loaded.warnings == ()
    assert loaded.features == {"karpenter"}
    assert (loaded.defaults.governor, loaded.node.governor_free) == ("performance", "powersave")


def test_as_shipped_the_governor_of_pinned_vms_is_performance_and_can_be_left_alone(tmp_path):
    loaded = load(tmp_path, '[vm.100]\ngovernor = ""\n', shipped("proxmox-scheduler"))
    assert (loaded.policy(101).governor, loaded.policy(100).governor) == ("performance", "")
    assert (loaded.node.governor_free, loaded.features, loaded.warnings) == ("", frozenset(), ())
