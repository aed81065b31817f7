"""The page and what runs behind it. Nothing is imported here: the command line uses `ui.chat` without Gradio."""
