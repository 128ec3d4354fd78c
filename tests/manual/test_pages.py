"""What README and the pages name is there."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(CHECKOUT)) for page in CHECKOUT.glob("*.md"))
PAGES += sorted(str(page.relative_to(CHECKOUT)) for page in CHECKOUT.glob("docs/*.md"))
# A file of the checkout, as text names one.
FILE = re.compile(r"(?<![\w./-])(?:\./)?((?:tests|bench|docs|hooks|pxsched|\.ci)/[\w./-]*\w|install\.sh)")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_file_that_a_page_names_exists(page):
    text = (CHECKOUT / page).read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    missing = {link for link in links if not (CHECKOUT / page).parent.joinpath(link).exists()}
    missing |= {name for name in FILE.findall(text) if not (CHECKOUT / name).exists()}
    assert missing == set()


def test_the_pages_a_package_has_are_pages_of_the_checkout():
    names = (CHECKOUT / "debian/pxsched.docs").read_text().split()
    assert "docs/settings.md" in names and all((CHECKOUT / name).is_file() for name in names)
