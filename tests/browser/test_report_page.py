"""The report of ``evaluate`` in a browser: every picture shows, and no request leaves the page."""

from __future__ import annotations

import numpy as np
import torch

from diffprivacy.evaluation.comparison import FaceComparison
from diffprivacy.evaluation.report import Evidence, Worst, as_html


def test_the_report_shows_its_pictures_and_asks_nobody(page, tmp_path):
    vectors = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    faces = [FaceComparison(f"photo {i}", {"a": v}, {"a": v}, True, 0.1, 20.0, 0.5, 0.3) for i, v in enumerate(vectors)]
    worst = [Worst("photo 0", torch.zeros(9, 9, 3), torch.ones(9, 9, 3))]
    (tmp_path / "report.html").write_text(as_html(Evidence({"protected": faces}, {"a": 0.3}, worst=worst)))
    tab, asked = page.page.context.browser.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((tmp_path / "report.html").as_uri())
    widths = tab.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    text = tab.inner_text("body")
    tab.close()
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert len(widths) == 4 and all(widths)
    assert "100.0 % (62.5 to 100.0)" in text
