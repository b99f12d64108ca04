"""README's blocks come from reports/, run records and the stages' notes; the rest stays."""

import json

from semires.process import STAGE_TIMES
from semires.reporting.readme import update_readme
from semires.runs import layout

TEXT = """top
<!-- results -->
old
<!-- /results -->
between
<!-- times -->
<!-- /times -->
end
"""


def test_blocks_are_renewed_and_the_rest_stays(own_workspace):
    layout.REPORTS.mkdir(exist_ok=True)
    (layout.REPORTS / "main.md").write_text("# Main\n")
    (layout.REPORTS / "listening.md").write_text("# Listening\n")
    STAGE_TIMES.parent.mkdir(exist_ok=True)
    notes = [("burn_in@a-1-0", 9.0), ("burn_in@a-1-0", 10.0), ("burn_in@a-1-1", 20.0)]
    STAGE_TIMES.write_text(
        "".join(json.dumps({"stage": name, "seconds": s}) + "\n" for name, s in notes)
    )
    readme = own_workspace / "README.md"
    readme.write_text(TEXT)

    update_readme(["results"], readme)
    results = readme.read_text()
    assert "## Main\n\n## Listening" in results
    assert "old" not in results
    assert results.endswith("<!-- /results -->\nbetween\n<!-- times -->\n<!-- /times -->\nend\n")

    update_readme(["results", "times"], readme)
    both = readme.read_text()
    assert "| burn_in | 2 | 15.0 | 30 |" in both, "the last time of each stage counts"
    assert both.startswith("top\n<!-- results -->")
    assert both.endswith("<!-- /times -->\nend\n")
    update_readme(["results", "times"], readme)
    assert readme.read_text() == both
