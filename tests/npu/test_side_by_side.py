"""Five panels on one page: the main environment's engines and the Intel NPU library's, next to each other."""

import pytest

from tests.ui.compare.driver import Driver, panels_setting
from tests.ui.conftest import serve_page

PANELS = (
    ("openvino-genai", "int8"),
    ("optimum-intel", "int8"),
    ("onnxruntime-genai", "int4"),
    ("intel-npu", "int8"),
    ("transformers", "fp32"),
)


@pytest.mark.timeout(600)
def test_five_engines_answer_side_by_side(data_dir, environments, manager, browser):
    if not environments.status("intel-npu").ready:
        pytest.skip(environments.status("intel-npu").reason)
    demo, arena = serve_page(data_dir, manager=manager)
    try:
        arena.store.set_setting("compare.panels", panels_setting(*PANELS))
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(arena.address)
        driver = Driver(page)
        assert driver.panels() == [1, 2, 3, 4, 5]
        driver.ask("What is an NPU?")
        assert [driver.phase(number) for number in driver.panels()] == ["finished"] * 5
        replies = [driver.reply(number) for number in driver.panels()]
        assert all(len(reply) > 20 for reply in replies), replies
        assert "NPU" in replies[3]
        assert "CPU" in page.locator("#panel-4 .panel-head").first.inner_text()
        (newest,) = arena.store.conversations(limit=1).summaries
        runs = arena.store.conversation(newest.id).turns[-1].runs
        assert {run.panel for run in runs} == {1, 2, 3, 4, 5}
        assert (
            len({run.metrics.prompt_sha256 for run in runs}) == 1
        )  # the same tokens, also in the other environment
        page.close()
    finally:
        demo.close()
        arena.forget()
        arena.store.close()
