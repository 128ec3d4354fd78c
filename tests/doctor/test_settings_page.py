"""The manual's page of settings says what the program takes."""

import importlib.util
from pathlib import Path

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
        assert setting.help


def test_the_template_for_admins_is_accepted_once_its_lines_count(tmp_path):
    """What is commented out in /etc/pxsched/pxsched.toml and /etc/default must be valid when it is not."""
    from pxsched.root import Root
    from pxsched.settings import files as settings

    templates = DOCS.parent / "hooks/default"
    for name, target in (("pxsched.toml", settings.NODE_FILE), ("proxmox-scheduler", settings.DEFAULT_FILE)):
        lines = (templates / name).read_text().splitlines()
        live = [line[1:] for line in lines if line.startswith("#") and line[1:2] not in (" ", "")]
        path = tmp_path / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(live))
    loaded = settings.load(Root(str(tmp_path)), {})
    assert loaded.warnings == ()
    assert loaded.features == {"karpenter"}
    assert loaded.governor_busy == "performance"
