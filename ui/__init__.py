"""The page and what runs behind it. Gradio is not imported here: the command line uses `ui.chat` without it."""

from ui.quick_gradio import install

install()
